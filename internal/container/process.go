package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/internal/stdio"
	"github.com/berthd/berth/task"
)

// process is what init and exec processes have in common. Its fields are
// guarded by c.mu, except those set once before it is shared.
type process struct {
	c    *Container
	id   string // empty for init
	kind task.Kind
	// stdio is set once; so is ownOOMScore: the spec gives the process a score.
	stdio       task.Stdio
	ownOOMScore bool

	status    task.Status
	pid       int
	startTime uint64
	exit      *task.Exit
	watch     *reap.Process
	streams   *stdio.Streams
	// busy: a runtime call that creates or starts the process is under way. An
	// exit that comes meanwhile is held, so that its event follows the event
	// of the start.
	busy bool
	held *reap.Exit
	// done is closed when the exit is stored and published, or when the
	// process is deleted without ever having run.
	done     chan struct{}
	deletion *deletion
	// owed are the events of what was stored last, or is to be.
	owed []owed
	// stored are how many of them the last save has taken. Guarded by c.mu.
	stored int
}

// deletion is one delete under way, or the one that succeeded.
type deletion struct {
	done chan struct{}
	exit task.Exit
	err  error
}

func (c *Container) newProcess(kind task.Kind, id string, io task.Stdio) *process {
	return &process{c: c, kind: kind, id: id, stdio: io, status: task.Created, done: make(chan struct{})}
}

// stateError names the process in an error of the table.
func (p *process) stateError(err error) error {
	var se *task.StateError
	if errors.As(err, &se) {
		se.ID, se.ExecID = p.c.id, p.id
	}
	return err
}

// allowed checks an operation. The caller holds c.mu.
func (p *process) allowed(op task.Operation) (task.Status, error) {
	next, err := task.Next(p.kind, p.status, op)
	if err != nil {
		return next, p.stateError(err)
	}
	return next, nil
}

// check is allowed for callers that do not hold c.mu.
func (p *process) check(op task.Operation) error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	_, err := p.allowed(op)
	return err
}

func (p *process) ExecID() string { return p.id }

func (p *process) State(context.Context) (task.State, error) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if _, err := p.allowed(task.OpState); err != nil {
		return task.State{}, err
	}
	s := task.State{
		ID: p.c.id, ExecID: p.id, Bundle: p.c.bundle, Pid: uint32(p.pid), Status: p.status, Stdio: p.stdio, Exit: p.exit,
	}
	if p.c.pausing && p.status == task.Running {
		s.Status = task.Pausing
	}
	if p.kind == task.Exec && p.status == task.Running && p.c.init.status == task.Paused {
		s.Status = task.Paused
	}
	return s, nil
}

func (p *process) Resize(_ context.Context, size task.ConsoleSize) error {
	p.c.mu.Lock()
	_, err := p.allowed(task.OpResize)
	streams := p.streams
	p.c.mu.Unlock()
	if err != nil || streams == nil {
		return err
	}
	return streams.Resize(size)
}

func (p *process) CloseStdin(context.Context) error {
	p.c.mu.Lock()
	_, err := p.allowed(task.OpCloseStdin)
	streams := p.streams
	p.c.mu.Unlock()
	if err != nil || streams == nil {
		return err
	}
	return streams.CloseStdin()
}

func (p *process) Wait(ctx context.Context) (task.Exit, error) {
	p.c.mu.Lock()
	_, err := p.allowed(task.OpWait)
	p.c.mu.Unlock()
	if err != nil {
		return task.Exit{}, err
	}
	select {
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	case <-p.done:
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.exit == nil {
		return task.Exit{}, fmt.Errorf("%s was deleted before it was started: %w", p.name(), errdefs.ErrNotFound)
	}
	return *p.exit, nil
}

func (p *process) name() string {
	if p.id == "" {
		return fmt.Sprintf("container %q", p.c.id.Container)
	}
	return fmt.Sprintf("exec %q of container %q", p.id, p.c.id.Container)
}

// signal sends to the process itself; one that has ended is a state error.
func (p *process) signal(sig syscall.Signal) error {
	p.c.mu.Lock()
	_, err := p.allowed(task.OpKill)
	watch := p.watch
	p.c.mu.Unlock()
	if err != nil {
		return err
	}
	finished := &task.StateError{ID: p.c.id, ExecID: p.id, Kind: p.kind, Status: task.Stopped, Op: task.OpKill, Gone: true}
	if watch == nil {
		return finished
	}
	err = watch.Signal(sig)
	if errors.Is(err, unix.ESRCH) {
		return finished
	}
	if err != nil {
		return fmt.Errorf("signal %d to %s: %w", sig, p.name(), err)
	}
	return nil
}

// delete runs fn once for all callers at the same time, to its end whatever
// becomes of them. After a failure the next caller tries again.
func (p *process) delete(ctx context.Context, fn func(context.Context) (task.Exit, error)) (task.Exit, error) {
	p.c.mu.Lock()
	d := p.deletion
	if d == nil || p.status == task.Deleted {
		if _, err := p.allowed(task.OpDelete); err != nil {
			p.c.mu.Unlock()
			return task.Exit{}, err
		}
		d = &deletion{done: make(chan struct{})}
		p.deletion = d
		p.c.set.wg.Go(func() {
			dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*callTimeout)
			defer cancel()
			d.exit, d.err = fn(dctx)
			p.c.mu.Lock()
			if d.err != nil {
				p.deletion = nil
			}
			p.c.mu.Unlock()
			close(d.done)
		})
	}
	p.c.mu.Unlock()
	select {
	case <-d.done:
		return d.exit, d.err
	case <-ctx.Done():
		return task.Exit{}, fmt.Errorf("delete %s goes on: %w", p.name(), ctx.Err())
	}
}

// streamsConfig names the fds that a successor finds with the guard.
func (p *process) streamsConfig() stdio.Config {
	name, id := p.c.id.Namespace+"/"+p.c.id.Container, p.c.id.Container
	if p.id != "" {
		name, id = name+"/"+p.id, p.id
	}
	return stdio.Config{
		Stdio: p.stdio, UID: p.c.options.IOUID, GID: p.c.options.IOGID,
		Namespace: p.c.id.Namespace, ID: id,
		Name: name, Keeper: p.c.set.cfg.Keeper, Watcher: p.c.set.cfg.Watcher, Files: p.c.set.cfg.Files,
		Dir: p.c.bundle, Log: p.c.log,
	}
}

// watchPid begins to watch the pid that a runtime call gave.
func (p *process) watchPid(pid int) error {
	start, err := reap.StartTime(pid)
	if err != nil {
		return fmt.Errorf("process %d of %s: %w", pid, p.name(), err)
	}
	w, err := p.c.set.cfg.Reaper.Watch(pid, 0, p.exited)
	if err != nil {
		return err
	}
	p.c.mu.Lock()
	p.pid, p.startTime, p.watch = pid, start, w
	p.c.mu.Unlock()
	if !p.ownOOMScore {
		p.dropOOMScore()
	}
	return nil
}

// dropOOMScore takes from the process the protection against the OOM killer
// that it inherited from the shim: a spec that asks for none gets none.
func (p *process) dropOOMScore() {
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil || !bytes.HasPrefix(own, []byte("-")) {
		return
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), []byte("0"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		p.c.log.Warn("the process keeps the shim's protection against the OOM killer", "pid", p.pid, "error", err)
	}
}
