package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
)

const (
	// maxPath bounds paths and URIs that are passed on.
	maxPath = 32 << 10
	// maxProcess bounds the spec of an exec, which travels in one message.
	maxProcess = 2 << 20
)

// Task is one task. It is a task.Task.
type Task struct {
	*process // init
	s        *Supervisor
	id       task.ID
	// fresh: made by Create of this supervisor, not found on disk.
	fresh bool
	// ready is closed when the task can be used, or is gone. What follows is
	// set before that by the one that makes or loads the task, and constant
	// afterwards; the bundle of a task found on disk is set from the start.
	ready   chan struct{}
	bundle  *bundle.Bundle
	keeper  *keeper
	group   *group   // nil with a foreign shim
	foreign *foreign // nil with Berth's
	broken  error    // why there is no keeper

	// execMu guards execs.
	execMu sync.Mutex
	execs  map[string]*process
}

var _ task.Task = (*Task)(nil)

// newTask makes a task that is not ready yet; b is nil for a new one.
func newTask(s *Supervisor, id task.ID, b *bundle.Bundle) *Task {
	t := &Task{
		s: s, id: id, bundle: b, fresh: b == nil,
		ready: make(chan struct{}),
		execs: make(map[string]*process),
	}
	t.process = newProcess(t, "")
	if b != nil {
		t.process.last.Bundle = b.Path
	}
	return t
}

// ID names the task.
func (t *Task) ID() task.ID { return t.id }

func (t *Task) isReady() bool {
	select {
	case <-t.ready:
		return true
	default:
		return false
	}
}

func (t *Task) creating() bool { return t.fresh && !t.isReady() }

// await waits, within Timeouts.Load, until the task can be used.
func (t *Task) await(ctx context.Context) error {
	if t.isReady() {
		return nil
	}
	limit := time.NewTimer(t.s.cfg.Timeouts.Load)
	defer limit.Stop()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.s.ctx.Done():
		return errClosed
	case <-limit.C:
		return fmt.Errorf("task %q is still being taken up after the restart; try again: %w", t.id.Container, errdefs.ErrUnavailable)
	}
}

// call passes a request to the task's shim.
func (t *Task) call(ctx context.Context, c call, req, resp proto.Message) error {
	if t.keeper == nil {
		return fmt.Errorf("task %q was not taken up after the restart (%w); delete it: %w", t.id.Container, t.broken, errdefs.ErrUnavailable)
	}
	return t.keeper.call(ctx, c, req, resp)
}

// Pause stops the container's processes.
func (t *Task) Pause(ctx context.Context) error {
	return t.do(ctx, task.OpPause, t.s.calls.pause, &taskapi.PauseRequest{ID: t.id.Container}, &emptypb.Empty{})
}

// Resume lets them go on.
func (t *Task) Resume(ctx context.Context) error {
	return t.do(ctx, task.OpResume, t.s.calls.resume, &taskapi.ResumeRequest{ID: t.id.Container}, &emptypb.Empty{})
}

// Update changes the container's resources.
func (t *Task) Update(ctx context.Context, resources task.Any, annotations map[string]string) error {
	if err := t.checkUpdate(ctx, resources); err != nil {
		return err
	}
	return t.do(ctx, task.OpUpdate, t.s.calls.update, &taskapi.UpdateTaskRequest{
		ID: t.id.Container, Resources: anyOf(resources), Annotations: annotations,
	}, &emptypb.Empty{})
}

// Checkpoint writes the container's state to a directory.
func (t *Task) Checkpoint(ctx context.Context, cfg task.CheckpointConfig) error {
	if err := checkPath("checkpoint path", cfg.Path); err != nil {
		return err
	}
	return t.do(ctx, task.OpCheckpoint, t.s.calls.checkpoint, &taskapi.CheckpointTaskRequest{
		ID: t.id.Container, Path: cfg.Path, Options: anyOf(cfg.Options),
	}, &emptypb.Empty{})
}

// Pids lists the container's processes.
func (t *Task) Pids(ctx context.Context) ([]task.ProcessInfo, error) {
	resp := &taskapi.PidsResponse{}
	if err := t.do(ctx, task.OpPids, t.s.calls.pids, &taskapi.PidsRequest{ID: t.id.Container}, resp); err != nil {
		return nil, err
	}
	infos := make([]task.ProcessInfo, 0, len(resp.Processes))
	for _, p := range resp.Processes {
		infos = append(infos, task.ProcessInfo{Pid: p.GetPid(), ExecID: execOf(p.GetInfo())})
	}
	return infos, nil
}

// execOf reads the exec's id where a shim tells it.
func execOf(info *anypb.Any) string {
	var details options.ProcessDetails
	if !strings.HasSuffix(info.GetTypeUrl(), "containerd.runc.v1.ProcessDetails") || proto.Unmarshal(info.GetValue(), &details) != nil {
		return ""
	}
	return details.ExecID
}

// Stats are the metrics of the container's cgroup.
func (t *Task) Stats(ctx context.Context) (task.Any, error) {
	resp := &taskapi.StatsResponse{}
	if err := t.do(ctx, task.OpStats, t.s.calls.stats, &taskapi.StatsRequest{ID: t.id.Container}, resp); err != nil {
		return task.Any{}, err
	}
	return task.Any{TypeURL: resp.Stats.GetTypeUrl(), Value: resp.Stats.GetValue()}, nil
}

// Exec registers a process.
func (t *Task) Exec(ctx context.Context, execID string, cfg task.ExecConfig) (task.Process, error) {
	if err := identifiers.Validate(execID); err != nil {
		return nil, fmt.Errorf("exec id: %w", err)
	}
	if len(cfg.Spec) > maxProcess {
		return nil, fmt.Errorf("spec of exec %q has %d bytes, more than the %d that are taken: %w", execID, len(cfg.Spec), maxProcess, errdefs.ErrInvalidArgument)
	}
	if err := checkStdio(cfg.Stdio); err != nil {
		return nil, err
	}
	if err := t.checkExec(ctx, execID, cfg.Spec); err != nil {
		return nil, err
	}
	err := t.do(ctx, task.OpExec, t.s.calls.exec, &taskapi.ExecProcessRequest{
		ID: t.id.Container, ExecID: execID,
		Terminal: cfg.Stdio.Terminal, Stdin: cfg.Stdio.Stdin, Stdout: cfg.Stdio.Stdout, Stderr: cfg.Stdio.Stderr,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: cfg.Spec},
	}, &emptypb.Empty{})
	if err != nil {
		return nil, err
	}
	p := newProcess(t, execID)
	p.last.Status, p.last.Stdio, p.last.Bundle = task.Created, cfg.Stdio, t.bundle.Path
	t.execMu.Lock()
	t.execs[execID] = p
	t.execMu.Unlock()
	if cfg.Stdio.Terminal && cfg.Stdio.Size != (task.ConsoleSize{}) {
		if err := p.Resize(ctx, cfg.Stdio.Size); err != nil {
			_, deleted := p.Delete(ctx)
			return nil, errors.Join(fmt.Errorf("set the terminal's size: %w", err), deleted)
		}
	}
	return p, nil
}

// Process finds an exec. One that was made before a restart is asked for.
func (t *Task) Process(ctx context.Context, execID string) (task.Process, error) {
	if err := identifiers.Validate(execID); err != nil {
		return nil, fmt.Errorf("exec id: %w", err)
	}
	t.execMu.Lock()
	p := t.execs[execID]
	t.execMu.Unlock()
	if p != nil {
		return p, nil
	}
	p = newProcess(t, execID)
	resp := &taskapi.StateResponse{}
	req := &taskapi.StateRequest{ID: t.id.Container, ExecID: execID}
	if err := p.do(ctx, task.OpState, t.s.calls.state, req, resp); err != nil {
		return nil, err
	}
	p.learn(stateOf(t.id, execID, resp))
	t.execMu.Lock()
	defer t.execMu.Unlock()
	if other := t.execs[execID]; other != nil {
		return other, nil
	}
	t.execs[execID] = p
	return p, nil
}

func (t *Task) dropExec(p *process) {
	t.execMu.Lock()
	defer t.execMu.Unlock()
	if t.execs[p.execID] == p {
		delete(t.execs, p.execID)
	}
}

// takeExecs empties the list of execs and returns what it was.
func (t *Task) takeExecs() []*process {
	t.execMu.Lock()
	defer t.execMu.Unlock()
	var all []*process
	for id, p := range t.execs {
		all = append(all, p)
		delete(t.execs, id)
	}
	return all
}

func checkStdio(io task.Stdio) error {
	for name, path := range map[string]string{"stdin": io.Stdin, "stdout": io.Stdout, "stderr": io.Stderr} {
		if err := checkPath(name, path); err != nil {
			return err
		}
	}
	return nil
}

func checkPath(what, path string) error {
	if len(path) > maxPath || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%s %.80q… is not a path or URI of at most %d bytes: %w", what, path, maxPath, errdefs.ErrInvalidArgument)
	}
	return nil
}
