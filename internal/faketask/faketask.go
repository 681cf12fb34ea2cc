// Package faketask is a task.Runner for tests: it keeps tasks in memory, obeys
// the life-cycle table, and runs nothing. A process ends when it is killed, with
// 128 plus the signal.
package faketask

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// Runner is an empty runner as its zero value. Its fields are set before use.
type Runner struct {
	// OnState, when set, is called by State first; its error is State's.
	OnState func(ctx context.Context, id task.ID) error
	// OnCreate, when set, is called by Create first; its error is Create's.
	OnCreate func(task.CreateConfig) error
	// OnCheckpoint, when set, writes the checkpoint.
	OnCheckpoint func(task.CheckpointConfig) error

	mu    sync.Mutex
	tasks map[task.ID]*Task // guarded by mu
	pid   uint32            // the last one given; guarded by mu
}

var _ task.Runner = (*Runner)(nil)

// Create makes a task in state created.
func (r *Runner) Create(_ context.Context, id task.ID, cfg task.CreateConfig) (task.Task, error) {
	if r.OnCreate != nil {
		if err := r.OnCreate(cfg); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[id] != nil {
		return nil, fmt.Errorf("task %s: %w", id.Container, errdefs.ErrAlreadyExists)
	}
	t := &Task{Config: cfg, execs: make(map[string]*process)}
	t.process = newProcess(r, task.Init, task.State{ID: id, Status: task.Created, Stdio: cfg.Stdio, Pid: r.nextPidLocked()})
	t.process.task = t
	if r.tasks == nil {
		r.tasks = make(map[task.ID]*Task)
	}
	r.tasks[id] = t
	return t, nil
}

func (r *Runner) nextPidLocked() uint32 {
	r.pid++
	return 1000 + r.pid
}

// Get finds a task.
func (r *Runner) Get(_ context.Context, id task.ID) (task.Task, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.tasks[id]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("task %s: %w", id.Container, errdefs.ErrNotFound)
}

// List returns the tasks of a namespace.
func (r *Runner) List(_ context.Context, namespace string) ([]task.Task, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []task.Task
	for id, t := range r.tasks {
		if id.Namespace == namespace {
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b task.Task) int { return cmp.Compare(a.ID().Container, b.ID().Container) })
	return list, nil
}

// Load does nothing; with PluginInfo and Close it makes a Runner do as an
// engine's runtime.
func (r *Runner) Load(context.Context) error { return nil }

// PluginInfo tells the name that was asked for.
func (r *Runner) PluginInfo(_ context.Context, q *types.RuntimeRequest) (*types.RuntimeInfo, error) {
	return &types.RuntimeInfo{Name: q.RuntimePath}, nil
}

// Sandboxes is nil: there are none.
func (r *Runner) Sandboxes() sandbox.Controller { return nil }

// Close forgets nothing: a Runner can be closed and used again.
func (r *Runner) Close(context.Context) error { return nil }

// Task is a task of a Runner.
type Task struct {
	*process
	// Config is what it was created with, Updated its last update.
	Config  task.CreateConfig
	Updated task.Any

	execs map[string]*process // guarded by the runner's mu
}

var _ task.Task = (*Task)(nil)

// ID names the task.
func (t *Task) ID() task.ID { return t.state.ID }

// Pause changes the state as the table says; so do Resume and Update.
func (t *Task) Pause(context.Context) error { return t.do(task.OpPause) }

// Resume undoes Pause.
func (t *Task) Resume(context.Context) error { return t.do(task.OpResume) }

// Update notes the resources.
func (t *Task) Update(_ context.Context, resources task.Any, _ map[string]string) error {
	t.Updated = resources
	return t.do(task.OpUpdate)
}

// Checkpoint calls the runner's OnCheckpoint.
func (t *Task) Checkpoint(_ context.Context, cfg task.CheckpointConfig) error {
	if err := t.do(task.OpCheckpoint); err != nil || t.runner.OnCheckpoint == nil {
		return err
	}
	return t.runner.OnCheckpoint(cfg)
}

// Exec registers a process.
func (t *Task) Exec(_ context.Context, execID string, cfg task.ExecConfig) (task.Process, error) {
	if err := t.do(task.OpExec); err != nil {
		return nil, err
	}
	t.runner.mu.Lock()
	defer t.runner.mu.Unlock()
	if t.execs[execID] != nil {
		return nil, fmt.Errorf("exec %s: %w", execID, errdefs.ErrAlreadyExists)
	}
	p := newProcess(t.runner, task.Exec, task.State{
		ID: t.state.ID, ExecID: execID, Status: task.Created, Stdio: cfg.Stdio,
	})
	p.task = t
	t.execs[execID] = p
	return p, nil
}

// Process finds an exec.
func (t *Task) Process(_ context.Context, execID string) (task.Process, error) {
	t.runner.mu.Lock()
	defer t.runner.mu.Unlock()
	if p := t.execs[execID]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %s: %w", execID, errdefs.ErrNotFound)
}

// Pids lists the init process and the execs that run.
func (t *Task) Pids(context.Context) ([]task.ProcessInfo, error) {
	if err := t.do(task.OpPids); err != nil {
		return nil, err
	}
	t.runner.mu.Lock()
	defer t.runner.mu.Unlock()
	pids := []task.ProcessInfo{{Pid: t.state.Pid}}
	for id, p := range t.execs {
		if p.state.Status == task.Running {
			pids = append(pids, task.ProcessInfo{Pid: p.state.Pid, ExecID: id})
		}
	}
	return pids, nil
}

// Stats are a payload with the container's id in it.
func (t *Task) Stats(context.Context) (task.Any, error) {
	return task.Any{TypeURL: "fake.Stats", Value: []byte(t.state.ID.Container)}, t.do(task.OpStats)
}

type process struct {
	runner *Runner
	kind   task.Kind
	task   *Task
	ended  chan struct{} // closed when the process is stopped or deleted

	state task.State // ID, ExecID and Stdio are fixed; the rest is guarded by runner.mu
}

func newProcess(r *Runner, kind task.Kind, state task.State) *process {
	return &process{runner: r, kind: kind, state: state, ended: make(chan struct{})}
}

// do moves the process as the table says.
func (p *process) do(op task.Operation) error {
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	return p.doLocked(op)
}

func (p *process) doLocked(op task.Operation) error {
	next, err := task.Next(p.kind, p.state.Status, op)
	if err != nil {
		var se *task.StateError
		if errors.As(err, &se) {
			se.ID, se.ExecID = p.state.ID, p.state.ExecID
		}
		return err
	}
	p.state.Status = next
	return nil
}

func (p *process) ExecID() string { return p.state.ExecID }

func (p *process) State(ctx context.Context) (task.State, error) {
	if on := p.runner.OnState; on != nil {
		if err := on(ctx, p.state.ID); err != nil {
			return task.State{}, err
		}
	}
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	return p.state, p.doLocked(task.OpState)
}

func (p *process) Start(context.Context) (uint32, error) {
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	if err := p.doLocked(task.OpStart); err != nil {
		return 0, err
	}
	if p.state.Pid == 0 {
		p.state.Pid = p.runner.nextPidLocked()
	}
	return p.state.Pid, nil
}

func (p *process) Kill(_ context.Context, signal syscall.Signal, _ bool) error {
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	if err := p.doLocked(task.OpKill); err != nil {
		return err
	}
	if err := p.doLocked(task.OpExited); err != nil {
		return err
	}
	p.state.Exit = &task.Exit{Pid: p.state.Pid, Status: 128 + uint32(signal), At: time.Now()}
	close(p.ended)
	return nil
}

func (p *process) Resize(_ context.Context, size task.ConsoleSize) error {
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	p.state.Stdio.Size = size
	return p.doLocked(task.OpResize)
}

func (p *process) CloseStdin(context.Context) error {
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	p.state.Stdio.Stdin = ""
	return p.doLocked(task.OpCloseStdin)
}

func (p *process) Wait(ctx context.Context) (task.Exit, error) {
	select {
	case <-p.ended:
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	}
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	if p.state.Exit == nil {
		return task.Exit{}, fmt.Errorf("process was deleted: %w", errdefs.ErrNotFound)
	}
	return *p.state.Exit, nil
}

func (p *process) Delete(context.Context) (task.Exit, error) {
	p.runner.mu.Lock()
	defer p.runner.mu.Unlock()
	before := p.state.Status
	if err := p.doLocked(task.OpDelete); err != nil {
		return task.Exit{}, err
	}
	if p.kind == task.Exec {
		delete(p.task.execs, p.state.ExecID)
	} else {
		delete(p.runner.tasks, p.state.ID)
	}
	if before != task.Stopped {
		close(p.ended)
	}
	if p.state.Exit == nil {
		return task.Exit{Pid: p.state.Pid}, nil
	}
	return *p.state.Exit, nil
}
