package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/bklog"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

const (
	// rootLabel is on the containers of an executor: after a kill -9 the next
	// one with the same root finds them by it.
	rootLabel   = "berth.executor/root"
	unknownExit = gatewayapi.UnknownExitStatus
)

// errTime is the cause of a step that ran into its time limit.
var errTime = errors.New("the step ran longer than its limit")

// runStep runs the container of a step that is prepared.
func (e *Executor) runStep(ctx context.Context, s *step, info executor.ProcessInfo, started func()) (resourcestypes.Recorder, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	p, err := e.openProcess(s.id, "", info)
	if err != nil {
		return nil, fmt.Errorf("step %s: %w", s.id, err)
	}
	s.undo.add("streams", func(context.Context) error { p.close(); return nil })
	pid, err := e.create(ctx, s, p)
	if err != nil {
		return nil, fmt.Errorf("create step %s: %w", s.id, err)
	}
	if n, ok := s.net.(onCreateRuntime); ok {
		if err := n.OnCreateRuntime(pid); err != nil {
			return nil, fmt.Errorf("network of step %s: %w", s.id, err)
		}
	}
	trace.SpanFromContext(ctx).AddEvent("Container created")
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if limit := e.cfg.Limits.Time; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w of %s", errTime, limit))
		defer cancel()
	}
	rec := newRecorder(pid, s.net)
	x, err := p.run(ctx, func(uint32) {
		rec.start()
		close(s.running)
		started()
	})
	s.exited = !x.at.IsZero()
	rec.stop()
	s.stop(nil)
	s.awaitExecs(e.cfg.KillTimeout)
	trace.SpanFromContext(ctx).AddEvent("Container exited", trace.WithAttributes(attribute.Int("exit.code", int(x.code))))
	if err := e.outcome(x, err, info.Meta, rec); err != nil {
		return rec, err
	}
	return rec, executor.CreateMountStubs(s.root.path, s.dropped, 0, 0)
}

// outcome is the error that the end of a step's program amounts to.
func (e *Executor) outcome(x exit, err error, meta executor.Meta, rec *recorder) error {
	if err != nil && x == (exit{}) {
		return err // it never ran, or nobody knows
	}
	if x.good(meta.ValidExitCodes) {
		return nil
	}
	result := &gatewayapi.ExitError{ExitCode: x.code, Err: err}
	if kills := rec.oomKills(); kills > 0 {
		text := fmt.Sprintf("exit code: %d: the kernel killed %d of the step's processes for lack of memory", x.code, kills)
		if l := e.cfg.Limits.Memory; l > 0 {
			text += fmt.Sprintf(" (the limit for a step is %d bytes)", l)
		}
		result.Err = errors.Join(&oomError{text}, err)
	}
	return result
}

// oomError names the lack of memory.
type oomError struct{ text string }

func (e *oomError) Error() string { return e.text }
func (e *oomError) Unwrap() error { return syscall.ENOMEM }

// good says whether the process was seen to end with a code that is valid,
// which a cancellation that came too late does not change.
func (x exit) good(codes []int) bool {
	if x.at.IsZero() {
		return false
	}
	if codes == nil {
		return x.code == 0
	}
	return slices.Contains(codes, int(x.code))
}

// create makes the container and its task, whose process waits to be started.
func (e *Executor) create(ctx context.Context, s *step, p *process) (pid uint32, err error) {
	ctx, cancel := e.callContext(ctx)
	defer cancel()
	record := containers.Container{ID: s.id, Labels: map[string]string{rootLabel: e.cfg.Root}}
	record.Runtime.Name = e.cfg.Runtime.Name
	if record.Spec, err = typeurl.MarshalAny(s.spec); err != nil {
		return 0, err
	}
	if o := e.cfg.Runtime.Options; o != nil {
		if record.Runtime.Options, err = typeurl.MarshalAny(o); err != nil {
			return 0, err
		}
	}
	s.undo.last = func() { e.dropRecord(s.id) }
	if _, err := e.client.ContainerService().Create(ctx, record); err != nil {
		if errdefs.IsAlreadyExists(err) {
			s.undo.last = nil // another's
		}
		return 0, err
	}
	s.undo.add("container", func(ctx context.Context) error {
		if s.exited {
			return e.deleteTask(ctx, s.id)
		}
		return e.killTask(ctx, s.id)
	})
	c := p.io.Config()
	r, err := e.client.TaskService().Create(ctx, &tasksapi.CreateTaskRequest{
		ContainerID: s.id, RuntimePath: e.cfg.Runtime.Path,
		Terminal: c.Terminal, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
		Rootfs: []*types.Mount{{Type: "bind", Source: s.root.path, Options: []string{"rbind"}}},
	})
	if err != nil {
		return 0, native(err)
	}
	return r.Pid, nil
}

// killTask ends a task that may not have ended, and deletes it. A task that
// waits to be started is killed like any other: a stock shim that is told to
// delete it never answers another Wait.
func (e *Executor) killTask(ctx context.Context, id string) error {
	kctx, cancel := context.WithTimeout(ctx, e.cfg.KillTimeout)
	defer cancel()
	tasks := e.client.TaskService()
	err := e.sendKill(kctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(syscall.SIGKILL), All: true})
	if err != nil && !gone(err) {
		return err
	}
	if _, err := tasks.Wait(kctx, &tasksapi.WaitRequest{ContainerID: id}); err != nil && !errdefs.IsNotFound(native(err)) {
		return fmt.Errorf("no end of its processes within %s: %w", e.cfg.KillTimeout, native(err))
	}
	return e.deleteTask(ctx, id)
}

func (e *Executor) deleteTask(ctx context.Context, id string) error {
	_, err := e.client.TaskService().Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

func (e *Executor) removeRecord(ctx context.Context, id string) error {
	if err := e.client.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// dropRecord removes the record of a container whose step has returned, so
// nobody hears of a failure but the log. [Executor.recover] finds what stays.
func (e *Executor) dropRecord(id string) {
	ctx, cancel := e.callContext(context.Background())
	defer cancel()
	if err := e.removeRecord(ctx, id); err != nil {
		bklog.L.WithError(err).Warnf("the record of step %s stays", id)
	}
}
