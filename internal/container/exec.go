package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/internal/stdio"
	"github.com/berthd/berth/task"
)

// Exec registers a process to be started later.
func (c *Container) Exec(_ context.Context, id string, cfg task.ExecConfig) (task.Process, error) {
	spec, view, err := execSpec(cfg)
	if err != nil {
		return nil, fmt.Errorf("exec %q of container %q: %w", id, c.id.Container, err)
	}
	io := cfg.Stdio
	if io.Size == (task.ConsoleSize{}) {
		io.Size = view.size()
	}
	p := c.newProcess(task.Exec, id, io)
	p.ownOOMScore = view.OOMScoreAdj != nil
	c.mu.Lock()
	if _, err := c.init.allowed(task.OpExec); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	if _, taken := c.execs[id]; taken {
		c.mu.Unlock()
		return nil, fmt.Errorf("exec %q of container %q: %w", id, c.id.Container, errdefs.ErrAlreadyExists)
	}
	c.execs[id] = p
	p.owe(task.Event{Kind: task.EventExecAdded})
	c.mu.Unlock()

	err = os.MkdirAll(filepath.Join(c.bundle, execDir), 0o700)
	if err == nil {
		err = replaceFile(p.specPath(), spec)
	}
	if err == nil {
		err = p.saveExec("")
	}
	if err != nil {
		c.forgetExec(p)
		return nil, fmt.Errorf("exec %q of container %q: %w", id, c.id.Container, err)
	}
	c.mu.Lock()
	_, err = c.init.allowed(task.OpExec)
	if err == nil {
		p.payLocked()
	}
	c.mu.Unlock()
	if err != nil { // the container has ended meanwhile: no event of it may follow
		c.forgetExec(p)
		return nil, err
	}
	return execProcess{p}, nil
}

// execSpec checks the process and sets its terminal to what the request says.
// Members that we do not know go to the runtime as they are.
func execSpec(cfg task.ExecConfig) ([]byte, *processView, error) {
	if len(cfg.Spec) > maxSpec {
		return nil, nil, fmt.Errorf("process spec of %d bytes: %w", len(cfg.Spec), errdefs.ErrInvalidArgument)
	}
	var members map[string]json.RawMessage
	var view processView
	err := json.Unmarshal(cfg.Spec, &members)
	if err == nil {
		err = json.Unmarshal(cfg.Spec, &view)
	}
	if err != nil || members == nil {
		return nil, nil, fmt.Errorf("process spec: %w: %w", errors.Join(err), errdefs.ErrInvalidArgument)
	}
	members["terminal"] = json.RawMessage("false")
	if cfg.Stdio.Terminal {
		members["terminal"] = json.RawMessage("true")
	}
	data, err := json.Marshal(members)
	return data, &view, err
}

// Process finds an exec.
func (c *Container) Process(_ context.Context, id string) (task.Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[id]
	if p == nil {
		return nil, fmt.Errorf("exec %q of container %q: %w", id, c.id.Container, errdefs.ErrNotFound)
	}
	return execProcess{p}, nil
}

func (c *Container) forgetExec(p *process) {
	for _, path := range []string{p.recordPath(), p.specPath(), p.specPath() + ".log", p.pidPath()} {
		if err := remove(path); err != nil {
			c.log.Warn("remove a file of an exec", "exec", p.id, "error", err)
		}
	}
	c.mu.Lock()
	delete(c.execs, p.id)
	c.mu.Unlock()
}

// execProcess is a process with the operations of an exec.
type execProcess struct{ *process }

func (p *process) Kill(_ context.Context, sig syscall.Signal, _ bool) error {
	if sig < 0 || sig > 64 {
		return fmt.Errorf("signal %d: %w", sig, errdefs.ErrInvalidArgument)
	}
	return p.signal(sig)
}

// Start runs the exec. When it fails the exec is stopped, with status 255 and
// the reason, and can only be deleted.
func (p *process) Start(ctx context.Context) (uint32, error) {
	if err := p.claimStart(); err != nil {
		return 0, err
	}
	pid, err := p.runExec(context.WithoutCancel(ctx))
	if err != nil {
		p.startFailed(err)
		return 0, fmt.Errorf("start exec %q of container %q: %w", p.id, p.c.id.Container, err)
	}
	p.ready()
	return pid, nil
}

// claimStart lets one caller through.
func (p *process) claimStart() error {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := p.allowed(task.OpStart); err != nil {
		return err
	}
	switch {
	case p.busy:
		return fmt.Errorf("exec %q of container %q is being started: %w", p.id, c.id.Container, errdefs.ErrFailedPrecondition)
	case p.deletion != nil:
		return fmt.Errorf("exec %q of container %q is being deleted: %w", p.id, c.id.Container, errdefs.ErrFailedPrecondition)
	case c.ended || c.init.status == task.Stopped || c.init.status == task.Deleted:
		return fmt.Errorf("container %s init process is not running: %w", c.id.Container, errdefs.ErrFailedPrecondition)
	}
	p.busy = true
	c.liveExecsLocked(1)
	return nil
}

func (p *process) runExec(ctx context.Context) (_ uint32, err error) {
	c := p.c
	streams, err := stdio.Open(ctx, p.streamsConfig())
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	p.streams = streams
	c.mu.Unlock()
	if err := p.saveExec(task.OpStart.String()); err != nil {
		return 0, err
	}
	release := c.set.cfg.Reaper.Hold()
	defer release()
	stdin, stdout, stderr := streams.RuntimeFiles()
	pid, err := c.runtime.Exec(ctx, ociruntime.ExecArgs{
		ID: c.id.Container, ProcessFile: p.specPath(), PidFile: p.pidPath(),
		ConsoleSocket: streams.ConsoleSocket(), Stdin: stdin, Stdout: stdout, Stderr: stderr,
	})
	if err != nil {
		return 0, err
	}
	if err := p.watchPid(pid); err != nil {
		return 0, err
	}
	sctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := streams.Started(sctx); err != nil {
		return 0, err
	}
	return uint32(pid), p.nowRunning()
}

// nowRunning publishes the start, unless the container's exit was published
// in the meantime: no event of it may follow.
func (p *process) nowRunning() error {
	c := p.c
	c.mu.Lock()
	next, err := p.allowed(task.OpStart)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	before := p.status
	p.status = next
	p.owe(task.Event{Kind: task.EventExecStarted, Pid: uint32(p.pid)})
	c.mu.Unlock()
	if err := p.saveExec(""); err != nil {
		c.log.Error("store that an exec runs", "exec", p.id, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init.status == task.Stopped || c.init.status == task.Deleted {
		p.status, p.owed, p.stored = before, nil, 0
		return fmt.Errorf("the container has ended: %w", errdefs.ErrFailedPrecondition)
	}
	p.payLocked()
	return nil
}

// startFailed ends what may have been started. Wait returns; there is no exit
// event, because there was no start.
func (p *process) startFailed(cause error) {
	c := p.c
	c.mu.Lock()
	watch := p.watch
	c.mu.Unlock()
	if watch != nil {
		if err := watch.Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			c.log.Warn("end an exec whose start failed", "exec", p.id, "error", err)
		}
		watch.Forget()
	}
	c.mu.Lock()
	streams := p.streams
	if next, err := p.allowed(task.OpStartFailed); err == nil {
		p.status = next
	}
	p.busy, p.held = false, nil
	p.exit = &task.Exit{Pid: uint32(p.pid), Status: reap.Unknown, At: time.Now(), Reason: "start failed: " + cause.Error()}
	close(p.done)
	c.liveExecsLocked(-1)
	c.mu.Unlock()
	if streams != nil {
		if err := closeStreams(context.Background(), streams); err != nil {
			c.log.Warn("close stdio", "exec", p.id, "error", err)
		}
	}
	if err := p.saveExec(""); err != nil {
		c.log.Error("store that the start of an exec failed", "exec", p.id, "error", err)
	}
}

// Delete forgets the exec and frees what it holds.
func (p *process) Delete(ctx context.Context) (task.Exit, error) {
	return p.delete(ctx, p.runDeleteExec)
}

func (p *process) runDeleteExec(ctx context.Context) (task.Exit, error) {
	c := p.c
	c.mu.Lock()
	stopped := p.status == task.Stopped
	busy := p.busy
	c.mu.Unlock()
	if busy {
		return task.Exit{}, fmt.Errorf("delete %s: it is being started: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	if stopped && !p.waitDone(ctx, killGrace) {
		return task.Exit{}, fmt.Errorf("delete %s: its exit is not stored yet: %w", p.name(), errdefs.ErrUnavailable)
	}
	c.mu.Lock()
	streams := p.streams
	c.mu.Unlock()
	if streams != nil {
		if err := closeStreams(ctx, streams); err != nil {
			c.log.Warn("close stdio", "exec", p.id, "error", err)
		}
	}
	c.forgetExec(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	p.status = task.Deleted
	if !stopped {
		close(p.done)
		return task.Exit{At: time.Now(), Status: reap.Unknown, Reason: "the process was never started"}, nil
	}
	return *p.exit, nil
}
