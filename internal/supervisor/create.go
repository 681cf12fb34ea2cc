package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
)

const (
	// maxMounts bounds the mounts of a root file system, maxOptions the bytes
	// of each one's strings.
	maxMounts  = 256
	maxOptions = 256 << 10
	// maxRepeats bounds how often a request is sent again to the successor of
	// a shim that ended over it.
	maxRepeats = 5
)

// creation is one Create under way.
type creation struct {
	cfg     task.CreateConfig
	runtime runtime
	spec    bundle.Spec
	done    chan struct{} // closed at the end, after err is set
	err     error

	mu        sync.Mutex
	finished  bool // guarded by mu
	abandoned bool // the caller left before that. Guarded by mu
}

// Create makes a task. When ctx ends before it is made, what was begun is
// finished and then deleted in the background; until then the id is taken.
func (s *Supervisor) Create(ctx context.Context, id task.ID, cfg task.CreateConfig) (task.Task, error) {
	c := &creation{cfg: cfg, done: make(chan struct{})}
	err := checkCreate(id, cfg)
	if err != nil {
		return nil, err
	}
	if c.spec, err = bundle.ParseSpec(cfg.Spec); err != nil {
		return nil, err
	}
	if c.runtime, err = s.resolve(cfg.Runtime); err != nil {
		return nil, err
	}
	if err := s.checkSpec(ctx, id, c.runtime, cfg); err != nil {
		return nil, fmt.Errorf("create task %q: %w", id.Container, err)
	}
	t, err := s.reserve(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := s.work(func() { t.create(s.ctx, c) }); err != nil {
		s.forget(t)
		return nil, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.abandon() {
			return nil, fmt.Errorf("create task %q: %w", id.Container, ctx.Err())
		}
		<-c.done
	}
	if c.err != nil {
		return nil, c.err
	}
	return t, nil
}

// abandon says whether the caller left in time; what is made is deleted then.
func (c *creation) abandon() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abandoned = !c.finished
	return c.abandoned
}

func (c *creation) finish() (abandoned bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finished = true
	return c.abandoned
}

func checkCreate(id task.ID, cfg task.CreateConfig) error {
	if err := bundle.CheckID(id); err != nil {
		return err
	}
	if cfg.Bundle != "" {
		return fmt.Errorf("task %q: the supervisor makes the bundle itself: %w", id.Container, errdefs.ErrInvalidArgument)
	}
	if err := checkStdio(cfg.Stdio); err != nil {
		return err
	}
	if err := checkPath("checkpoint", cfg.Checkpoint); err != nil {
		return err
	}
	if len(cfg.Rootfs) > maxMounts {
		return fmt.Errorf("root file system of task %q has %d mounts, more than the %d that are taken: %w", id.Container, len(cfg.Rootfs), maxMounts, errdefs.ErrInvalidArgument)
	}
	for _, m := range cfg.Rootfs {
		all := m.Type + m.Source + m.Target + strings.Join(m.Options, "")
		if len(all) > maxOptions || strings.ContainsRune(all, 0) {
			return fmt.Errorf("root file system of task %q: mount of %.80q is too long or holds a NUL: %w", id.Container, m.Source, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// create is the work of Create.
func (t *Task) create(ctx context.Context, c *creation) {
	defer close(c.done)
	c.err = t.make(ctx, c)
	kept := c.err != nil && errors.Is(c.err, errKept)
	abandoned := c.finish()
	if abandoned && c.err == nil {
		close(t.ready)
		if _, err := t.Delete(ctx); err != nil {
			t.s.cfg.Log.Warn("task whose creator left is not deleted", "task", t.id.String(), "error", err)
		}
		return
	}
	if c.err != nil && !kept {
		t.vanish()
		t.s.forget(t)
	}
	close(t.ready)
}

// errKept: a task that could not be made could not be removed either, and is
// listed so that it can be deleted.
var errKept = errors.New("what was made is kept; delete the task to try again")

// make makes bundle, shim and task, and undoes what it did when it fails.
func (t *Task) make(ctx context.Context, c *creation) error {
	b, err := t.s.bundles.Create(t.id, c.cfg.Spec, c.spec.RootGID)
	if err != nil {
		return err
	}
	t.bundle = b
	t.remember(c)
	direct := c.runtime.own && c.cfg.SandboxAddress == ""
	if direct {
		err = t.makeOwn(ctx, c)
	} else {
		err = t.makeForeign(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("create task %q: %w", t.id.Container, err)
	}
	return nil
}

func (t *Task) remember(c *creation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last.Bundle, t.last.Stdio = t.bundle.Path, c.cfg.Stdio
}

func (t *Task) makeOwn(ctx context.Context, c *creation) (err error) {
	key := t.s.groupKey(t.id.Container, c.spec.Annotations)
	if t.group, err = t.s.acquire(ctx, newGroupID(t.id.Namespace, key), key); err != nil {
		return alsoFailed(err, t.deleteBundle())
	}
	t.keeper = t.group.keeper
	if err := t.writeOwn(ctx, c); err != nil {
		return t.undoOwn(ctx, err)
	}
	return nil
}

// writeOwn has on disk how the task is found again before the shim is told
// of it.
func (t *Task) writeOwn(ctx context.Context, c *creation) error {
	limit := t.s.cfg.Timeouts.startGuard() + t.s.cfg.Timeouts.Connect
	cctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, _, err := t.keeper.connection(cctx, true); err != nil {
		return err
	}
	result, err := t.group.readBootstrap()
	if err != nil {
		return err
	}
	if err := t.bundle.WriteFile(bundle.ShimFile, []byte(c.runtime.path), 0o600); err != nil {
		return err
	}
	if err := writeBootstrap(t.bundle, result); err != nil {
		return err
	}
	if err := t.bundle.WriteFile(bundle.GroupFile, []byte(t.group.id.name), 0o600); err != nil {
		return err
	}
	if err := t.activateRootfs(ctx, c, nil); err != nil {
		return err
	}
	return t.callCreate(ctx, c)
}

// callCreate sends the request. When the connection breaks over it, a shim
// that knows nothing of the task, having read all state from disk, is asked
// once more.
func (t *Task) callCreate(ctx context.Context, c *creation) error {
	req := t.createRequest(c.cfg)
	resp := &taskapi.CreateTaskResponse{}
	err := t.keeper.call(ctx, t.s.calls.create, req, resp)
	for range maxRepeats {
		if !errors.Is(err, errInterrupted) || t.group == nil || !t.unknownToShim(ctx) {
			break
		}
		err = t.keeper.call(ctx, t.s.calls.create, req, resp)
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.last.Pid, t.last.Status = resp.Pid, task.Created
	t.mu.Unlock()
	if io := c.cfg.Stdio; io.Terminal && io.Size != (task.ConsoleSize{}) {
		return t.keeper.call(ctx, t.s.calls.resize, &taskapi.ResizePtyRequest{
			ID: t.id.Container, Width: uint32(io.Size.Width), Height: uint32(io.Size.Height),
		}, &emptypb.Empty{})
	}
	return nil
}

// unknownToShim asks the successor of a shim, which may have to be started
// first.
func (t *Task) unknownToShim(ctx context.Context) bool {
	c := t.s.calls.state
	c.limit, c.question, c.impatient = t.s.cfg.Timeouts.startGuard()+t.s.cfg.Timeouts.Connect, false, true
	err := t.keeper.call(ctx, c, &taskapi.StateRequest{ID: t.id.Container}, &taskapi.StateResponse{})
	return errdefs.IsNotFound(err)
}

func (t *Task) createRequest(cfg task.CreateConfig) *taskapi.CreateTaskRequest {
	return &taskapi.CreateTaskRequest{
		ID: t.id.Container, Bundle: t.bundle.Path, Rootfs: mountsOf(cfg.Rootfs),
		Terminal: cfg.Stdio.Terminal, Stdin: cfg.Stdio.Stdin, Stdout: cfg.Stdio.Stdout, Stderr: cfg.Stdio.Stderr,
		Checkpoint: cfg.Checkpoint, Options: anyOf(cfg.Options),
	}
}

// undoOwn removes what a failed create left. A shim that answered has removed
// its part; one that may be at it still is told to.
func (t *Task) undoOwn(ctx context.Context, cause error) error {
	if !answered(cause) && t.keeper.connected() {
		c := t.s.calls.del
		c.limit = t.s.cfg.Timeouts.Signal
		req, resp := &taskapi.DeleteRequest{ID: t.id.Container}, &taskapi.DeleteResponse{}
		err := t.keeper.call(ctx, c, req, resp)
		for n := 0; n < maxRepeats && errors.Is(err, errInterrupted); n++ {
			err = t.keeper.call(ctx, c, req, resp)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("%w (%w)", cause, errKept)
		}
	}
	err := t.deleteBundle()
	t.group.release()
	return alsoFailed(cause, err)
}

// alsoFailed adds to an error, on its line, that of the clean-up after it.
func alsoFailed(cause, cleanup error) error {
	if cleanup == nil {
		return cause
	}
	return fmt.Errorf("%w; cleaning up failed too: %w", cause, cleanup)
}

func (t *Task) makeForeign(ctx context.Context, c *creation) error {
	err := t.reachForeign(ctx, c)
	if err == nil {
		var shim *bootapi.BootstrapResult
		if shim, err = readBootstrap(t.bundle); err == nil {
			err = t.activateRootfs(ctx, c, shim)
		}
	}
	if err == nil {
		err = t.callCreate(ctx, c)
	}
	if err == nil {
		// Without an answer the pid of the shim is not known, which is no more
		// than one proof the less of its death.
		_ = t.foreign.greet(ctx)
		return nil
	}
	return t.undoForeign(ctx, err)
}

// reachForeign joins the shim of the task's sandbox, or starts one.
func (t *Task) reachForeign(ctx context.Context, c *creation) error {
	sandbox, err := t.s.sandboxShim(t.id.Namespace, c.cfg)
	if err != nil {
		return err
	}
	if sandbox == nil {
		return t.startForeign(ctx, c.runtime.path, c.cfg.Options)
	}
	if err := t.bundle.WriteFile(bundle.ShimFile, []byte(c.runtime.path), 0o600); err != nil {
		return err
	}
	if err := t.bundle.WriteFile(bundle.SandboxFile, []byte(c.cfg.SandboxID), 0o600); err != nil {
		return err
	}
	f := &foreign{t: t, path: c.runtime.path, joined: true}
	if err := f.openLog(); err != nil {
		return err
	}
	t.foreign = f
	return f.join(ctx, sandbox)
}

// sandboxShim finds the shim that the task is to join: the one at the address
// that is given, else the one of the sandbox's own task, else the one that the
// sandbox controller has started. nil: the task gets a
// shim of its own, also where the sandbox's speaks version 2, which knows no
// joining.
func (s *Supervisor) sandboxShim(namespace string, cfg task.CreateConfig) (*bootapi.BootstrapResult, error) {
	if cfg.SandboxID == "" && cfg.SandboxAddress == "" {
		return nil, nil
	}
	var result *bootapi.BootstrapResult
	var err error
	if cfg.SandboxAddress != "" {
		result, err = sandboxAddress(cfg.SandboxAddress, cfg.SandboxVersion)
	} else if sandbox := s.find(task.ID{Namespace: namespace, Container: cfg.SandboxID}); sandbox != nil {
		result, err = readBootstrap(sandbox.bundle)
	} else if result, err = s.sandboxes.endpoint(task.ID{Namespace: namespace, Container: cfg.SandboxID}); errdefs.IsNotFound(err) {
		return nil, nil // a record alone: the task gets a shim as if there were none
	}
	if err != nil || result == nil || result.Version < 3 {
		return nil, err
	}
	return result, nil
}

// undoForeign ends and removes what a failed create left.
func (t *Task) undoForeign(ctx context.Context, cause error) error {
	if t.foreign == nil {
		return alsoFailed(cause, t.deleteBundle())
	}
	if t.keeper != nil {
		c := call{method: "Delete", limit: t.s.cfg.Timeouts.Cleanup}
		// Best effort: the shim's "delete" command does the rest.
		_ = t.keeper.call(ctx, c, &taskapi.DeleteRequest{ID: t.id.Container}, &taskapi.DeleteResponse{})
	}
	t.foreign.dismiss(ctx)
	return alsoFailed(cause, t.deleteBundle())
}
