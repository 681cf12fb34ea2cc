package supervisor

import (
	"context"
	"errors"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// waiter is one Wait call to the shim that everybody who waits for the process
// shares. Its results are set before done is closed.
type waiter struct {
	done   chan struct{}
	cancel context.CancelFunc
	exit   task.Exit
	err    error
}

// Wait returns when the process has ended. The exit is kept: it is answered
// from memory from then on, whatever becomes of the shim.
func (p *process) Wait(ctx context.Context) (task.Exit, error) {
	if err := p.t.await(ctx); err != nil {
		return task.Exit{}, err
	}
	w, err := p.waiter()
	if err != nil {
		return task.Exit{}, err
	}
	select {
	case <-w.done:
		return w.exit, w.err
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	}
}

func (p *process) waiter() (*waiter, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, p.stateError(task.Deleted, task.OpWait)
	case p.exit != nil:
		return ended(*p.exit), nil
	case p.refused != nil:
		return ended(*refusedExit(p.refused)), nil
	case p.wait != nil:
		return p.wait, nil
	}
	ctx, cancel := context.WithCancel(p.t.s.ctx)
	w := &waiter{done: make(chan struct{}), cancel: cancel}
	if err := p.t.s.loop(func() { p.await(ctx, w) }); err != nil {
		cancel()
		return nil, err
	}
	p.wait = w
	return w, nil
}

func ended(exit task.Exit) *waiter {
	w := &waiter{done: make(chan struct{}), exit: exit}
	close(w.done)
	return w
}

// await is the waiter's goroutine.
func (p *process) await(ctx context.Context, w *waiter) {
	resp := &taskapi.WaitResponse{}
	req := &taskapi.WaitRequest{ID: p.t.id.Container, ExecID: p.execID}
	err := p.t.call(ctx, p.t.s.calls.wait, req, resp)
	if errors.Is(err, errDead) || errors.Is(err, errClosed) {
		// Whoever cleans up after the shim, or deletes the task, tells how the
		// process ended.
		select {
		case <-w.done:
		case <-ctx.Done():
		}
	}
	exit := task.Exit{Status: resp.ExitStatus, At: timeOf(resp.ExitedAt)}
	if err == nil {
		exit = p.complete(exit)
	} else {
		p.awaitDelete(ctx, w)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wait != w {
		return // settled meanwhile, by a delete
	}
	switch {
	case p.t.s.ctx.Err() != nil:
		p.endWait(task.Exit{}, fmt.Errorf("wait for %s: %w", p.t.id, errClosed))
	case err != nil:
		p.endWait(task.Exit{}, err)
	default:
		p.settleLocked(exit)
	}
}

// awaitDelete waits for a deletion under way: it knows better than a call that
// the end of the shim has broken off.
func (p *process) awaitDelete(ctx context.Context, w *waiter) {
	p.mu.Lock()
	d := p.del
	p.mu.Unlock()
	if d == nil {
		return
	}
	select {
	case <-d.done:
	case <-w.done:
	case <-ctx.Done():
	}
}

// settle records how the process ended and tells those who wait. The first
// record stands.
func (p *process) settle(exit task.Exit) task.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.settleLocked(exit)
}

func (p *process) settleLocked(exit task.Exit) task.Exit {
	if p.exit == nil {
		if exit.Pid == 0 {
			exit.Pid = p.last.Pid
		}
		p.exit = &exit
	}
	p.last.Status, p.last.Exit = task.Stopped, p.exit
	p.endWait(*p.exit, nil)
	return *p.exit
}

// known returns the exit if anything is known of it, nil else.
func (p *process) known() *task.Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit != nil {
		return p.exit
	}
	return p.seen
}

// endWait tells those who wait. p.mu is held.
func (p *process) endWait(exit task.Exit, err error) {
	w := p.wait
	if w == nil {
		return
	}
	p.wait = nil
	w.exit, w.err = exit, err
	close(w.done)
	w.cancel()
}

// vanish marks the process as deleted. Who waits for one that never ran gets
// NotFound.
func (p *process) vanish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.last.Status = task.Deleted
	if p.exit != nil {
		p.endWait(*p.exit, nil)
		return
	}
	p.endWait(task.Exit{}, fmt.Errorf("%s was deleted before it ran: %w", p.name(), errdefs.ErrNotFound))
}

func (p *process) name() string {
	if p.execID != "" {
		return fmt.Sprintf("exec %q of container %q", p.execID, p.t.id.Container)
	}
	return fmt.Sprintf("container %q", p.t.id.Container)
}
