package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/task"
)

// process is the init process of a task, or an exec: what is known of it, and
// the calls to its shim. It is a task.Process.
type process struct {
	t      *Task
	execID string

	mu   sync.Mutex
	last task.State // what the shim last said. Guarded by mu
	// started: the process has run, or still does. Guarded by mu
	started bool
	// refused is why the start of an exec failed. Guarded by mu
	refused error
	// exit is what Wait and Delete answer, once the shim has answered one of
	// them; seen is what it said of the state before. Guarded by mu
	exit, seen *task.Exit
	gone       bool      // deleted. Guarded by mu
	wait       *waiter   // guarded by mu; nil while no one waits
	del        *deletion // guarded by mu; nil while none is under way
}

func newProcess(t *Task, execID string) *process {
	return &process{t: t, execID: execID, last: task.State{ID: t.id, ExecID: execID}}
}

func (p *process) kind() task.Kind {
	if p.execID != "" {
		return task.Exec
	}
	return task.Init
}

// ExecID is empty for the init process.
func (p *process) ExecID() string { return p.execID }

func (p *process) isGone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

func (p *process) stateError(status task.Status, op task.Operation) error {
	_, err := task.Next(p.kind(), status, op)
	var se *task.StateError
	if errors.As(err, &se) {
		se.ID, se.ExecID = p.t.id, p.execID
	}
	return err
}

// do waits until the task can be used and passes a call.
func (p *process) do(ctx context.Context, op task.Operation, c call, req, resp proto.Message) error {
	if err := p.t.await(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	gone, ended := p.gone, p.exit != nil || p.refused != nil
	p.mu.Unlock()
	switch {
	case gone:
		return p.stateError(task.Deleted, op)
	case ended:
		if err := p.stateError(task.Stopped, op); err != nil {
			return err
		}
	}
	err := p.t.call(ctx, c, req, resp)
	if err != nil && p.t.foreign != nil && errdefs.IsUnknown(err) {
		return p.explain(ctx, op, err)
	}
	return err
}

// explain gives the error of a foreign shim its class where the life-cycle
// table knows better: such shims answer a wrong state with plain text.
func (p *process) explain(ctx context.Context, op task.Operation, cause error) error {
	resp := &taskapi.StateResponse{}
	req := &taskapi.StateRequest{ID: p.t.id.Container, ExecID: p.execID}
	if p.t.call(ctx, p.t.s.calls.state, req, resp) != nil {
		return cause
	}
	if err := p.stateError(statusOf(resp.Status), op); err != nil && statusOf(resp.Status) != task.Unknown {
		return err
	}
	return cause
}

// State asks the shim. Where that does not answer, what it last said is the
// state, marked stale.
func (p *process) State(ctx context.Context) (task.State, error) {
	if !p.t.isReady() {
		return p.stale(), nil
	}
	resp := &taskapi.StateResponse{}
	req := &taskapi.StateRequest{ID: p.t.id.Container, ExecID: p.execID}
	err := p.do(ctx, task.OpState, p.t.s.calls.state, req, resp)
	switch {
	case err == nil:
		st := stateOf(p.t.id, p.execID, resp)
		if st.Exit != nil && p.known() == nil {
			*st.Exit = p.complete(*st.Exit)
		}
		return p.learn(st), nil
	case ctx.Err() != nil:
		return task.State{}, ctx.Err()
	case errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err):
		return p.stale(), nil
	}
	if p.execID != "" && errdefs.IsNotFound(err) {
		p.t.dropExec(p)
	}
	return task.State{}, err
}

func (p *process) stale() task.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.last
	st.Stale = true
	return st
}

// learn keeps what the shim said and adds what is known better here.
func (p *process) learn(st task.State) task.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused != nil {
		st.Status, st.Exit = task.Stopped, refusedExit(p.refused)
	}
	switch st.Status {
	case task.Running, task.Paused, task.Pausing:
		p.started = true
	case task.Stopped:
		if p.exit != nil {
			st.Exit = p.exit
		} else if p.seen != nil {
			st.Exit = p.seen
		} else if st.Exit != nil && !st.Exit.At.IsZero() {
			exit := *st.Exit
			p.seen = &exit
		}
	}
	if st.Bundle == "" {
		st.Bundle = p.t.bundle.Path
	}
	p.last = st
	if st.Exit != nil {
		exit := *st.Exit
		st.Exit = &exit
	}
	return st
}

// Start runs the process.
func (p *process) Start(ctx context.Context) (uint32, error) {
	resp := &taskapi.StartResponse{}
	err := p.do(ctx, task.OpStart, p.t.s.calls.start, &taskapi.StartRequest{ID: p.t.id.Container, ExecID: p.execID}, resp)
	p.mu.Lock()
	defer p.mu.Unlock()
	var se *task.StateError
	switch {
	case err == nil:
		p.started = true
		p.last.Pid, p.last.Status = resp.Pid, task.Running
		return resp.Pid, nil
	case p.execID != "" && p.t.foreign != nil && !p.started && answered(err) && !errors.As(err, &se):
		// Asked a second time, the stock shim would panic; asked how it ended,
		// it would say with 0.
		p.refused = err
		p.endWait(*refusedExit(err), nil)
	}
	return 0, err
}

// answered says that the error is the shim's own and not about reaching it.
func answered(err error) bool {
	return !errdefs.IsUnavailable(err) && !errdefs.IsDeadlineExceeded(err) && !errdefs.IsCanceled(err)
}

func refusedExit(cause error) *task.Exit {
	return &task.Exit{Status: 255, Reason: "it was never started: " + cause.Error()}
}

// Kill sends a signal.
func (p *process) Kill(ctx context.Context, signal syscall.Signal, all bool) error {
	if signal < 0 || signal > 64 {
		return fmt.Errorf("signal %d does not exist: %w", int(signal), errdefs.ErrInvalidArgument)
	}
	c := p.t.s.calls.kill
	c.repeat = signal == syscall.SIGKILL // another signal might come twice
	return p.do(ctx, task.OpKill, c, &taskapi.KillRequest{
		ID: p.t.id.Container, ExecID: p.execID, Signal: uint32(signal), All: all && p.execID == "",
	}, &emptypb.Empty{})
}

// Resize sets the size of the terminal.
func (p *process) Resize(ctx context.Context, size task.ConsoleSize) error {
	return p.do(ctx, task.OpResize, p.t.s.calls.resize, &taskapi.ResizePtyRequest{
		ID: p.t.id.Container, ExecID: p.execID, Width: uint32(size.Width), Height: uint32(size.Height),
	}, &emptypb.Empty{})
}

// CloseStdin lets the process see the end of its input.
func (p *process) CloseStdin(ctx context.Context) error {
	return p.do(ctx, task.OpCloseStdin, p.t.s.calls.closeIO, &taskapi.CloseIORequest{
		ID: p.t.id.Container, ExecID: p.execID, Stdin: true,
	}, &emptypb.Empty{})
}
