package executor

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/iohelper"
	"google.golang.org/grpc"
)

// drainTimeout is how long output may still come when a process has ended: a
// process that it left behind may hold the streams for ever.
const drainTimeout = 5 * time.Second

// daemonTimeout is how long a daemon that died may take to serve again, and
// daemonDeaths how often it may die in a step's time.
const (
	daemonTimeout = time.Minute
	daemonDeaths  = 10
)

// process is a step's program or one that Exec added, with its streams.
type process struct {
	e         *Executor
	container string
	exec      string // empty for the step's program
	io        cio.IO
	info      executor.ProcessInfo
}

// openProcess opens the streams. The caller closes them with close.
func (e *Executor) openProcess(container, exec string, info executor.ProcessInfo) (*process, error) {
	// Stock shims want all outputs or none.
	if info.Stdout == nil {
		info.Stdout = &iohelper.NopWriteCloser{Writer: io.Discard}
	}
	if info.Stderr == nil {
		info.Stderr = &iohelper.NopWriteCloser{Writer: io.Discard}
	}
	opts := []cio.Opt{
		cio.WithFIFODir(filepath.Join(e.cfg.Root, "fifo")),
		cio.WithStreams(stdin(info), info.Stdout, info.Stderr),
	}
	if info.Meta.Tty {
		opts = append(opts, cio.WithTerminal)
	}
	name := exec
	if name == "" {
		name = container
	}
	streams, err := cio.NewCreator(opts...)(name)
	if err != nil {
		return nil, fmt.Errorf("open streams: %w", err)
	}
	return &process{e: e, container: container, exec: exec, io: streams, info: info}, nil
}

// stdin is nil, and not a nil reader in an interface, where there is none.
func stdin(info executor.ProcessInfo) io.Reader {
	if info.Stdin == nil {
		return nil
	}
	return info.Stdin
}

func (p *process) close() {
	p.io.Cancel()
	if err := p.io.Close(); err != nil {
		bklog.L.WithError(err).Warnf("close streams of %s %s", p.container, p.exec)
	}
}

// exit is how a process ended.
type exit struct {
	code uint32
	at   time.Time
}

// run starts the process and waits for its end, or for that of the context:
// then it kills it, with all of the step's processes if it is the step's own.
func (p *process) run(ctx context.Context, started func(pid uint32)) (exit, error) {
	exits := make(chan exitResult, 1)
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	waiting.Go(func() { exits <- p.wait(wctx) })
	pid, err := p.start(ctx)
	if err != nil {
		return exit{}, err
	}
	if started != nil {
		started(pid)
	}
	waiting.Go(func() { p.forward(wctx) })
	if p.info.Stdin != nil {
		// From now on the end of our writer is the end of the program's input.
		if err := p.closeIO(ctx); err != nil && !gone(err) {
			bklog.G(ctx).WithError(err).Warnf("close stdin of %s", p.container)
		}
	}
	select {
	case r := <-exits:
		return p.ended(r)
	case <-ctx.Done():
		return p.kill(ctx, exits)
	}
}

type exitResult struct {
	exit
	err error
}

// ended lets the output come to its end.
func (p *process) ended(r exitResult) (exit, error) {
	if r.err != nil {
		return exit{}, fmt.Errorf("wait for the process: %w", r.err)
	}
	done := make(chan struct{})
	go func() { // ends with the streams, which close cuts off
		defer close(done)
		p.io.Wait()
	}()
	select {
	case <-done:
	case <-time.After(drainTimeout):
	}
	return r.exit, nil
}

// kill ends the process and waits for the proof of it.
func (p *process) kill(ctx context.Context, exits <-chan exitResult) (exit, error) {
	since := time.Now()
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.e.cfg.KillTimeout)
	defer cancel()
	kerr := p.e.sendKill(kctx, &tasksapi.KillRequest{
		ContainerID: p.container, ExecID: p.exec, Signal: uint32(syscall.SIGKILL), All: p.exec == "",
	})
	what := "all processes of the step"
	if p.exec != "" {
		what = "the process"
	}
	select {
	case r := <-exits:
		x, err := p.ended(r)
		if err != nil {
			return x, err
		}
		return x, &killedError{fmt.Sprintf("exit code: %d: killed %s, which ended within %s",
			x.code, what, time.Since(since).Round(time.Millisecond)), context.Cause(ctx)}
	case <-kctx.Done():
		text := fmt.Sprintf("killed %s, but no end was seen within %s", what, p.e.cfg.KillTimeout)
		if kerr != nil && !gone(kerr) {
			text = fmt.Sprintf("could not kill %s within %s (%v)", what, p.e.cfg.KillTimeout, kerr)
		}
		return exit{code: unknownExit}, &killedError{text, context.Cause(ctx)}
	}
}

// killedError says what a cancellation did.
type killedError struct {
	did   string
	cause error
}

func (e *killedError) Error() string { return e.did + ": " + e.cause.Error() }
func (e *killedError) Unwrap() error { return e.cause }

// forward passes signals and sizes on until the context ends.
func (p *process) forward(ctx context.Context) {
	resize, signal := p.info.Resize, p.info.Signal
	for resize != nil || signal != nil {
		var err error
		select {
		case <-ctx.Done():
			return
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			_, err = p.e.client.TaskService().ResizePty(ctx, &tasksapi.ResizePtyRequest{
				ContainerID: p.container, ExecID: p.exec, Width: size.Cols, Height: size.Rows,
			})
		case sig, ok := <-signal:
			if !ok {
				signal = nil
				continue
			}
			_, err = p.e.client.TaskService().Kill(ctx, &tasksapi.KillRequest{
				ContainerID: p.container, ExecID: p.exec, Signal: uint32(sig),
			})
		}
		if err = native(err); err != nil && !gone(err) && ctx.Err() == nil {
			bklog.G(ctx).WithError(err).Warnf("pass a signal or a terminal's size on to step %s", p.container)
		}
	}
}

func (p *process) start(ctx context.Context) (uint32, error) {
	ctx, cancel := p.e.callContext(ctx)
	defer cancel()
	r, err := p.e.client.TaskService().Start(ctx, &tasksapi.StartRequest{ContainerID: p.container, ExecID: p.exec})
	if err != nil {
		return 0, fmt.Errorf("start the process: %w", native(err))
	}
	return r.Pid, nil
}

// wait waits for the exit. A daemon that dies meanwhile may come back: the step
// goes on without it.
func (p *process) wait(ctx context.Context) (last exitResult) {
	for range daemonDeaths {
		r, err := p.e.client.TaskService().Wait(ctx, &tasksapi.WaitRequest{ContainerID: p.container, ExecID: p.exec})
		if err == nil {
			return exitResult{exit: exit{code: r.ExitStatus, at: r.ExitedAt.AsTime()}}
		}
		last.err = native(err)
		if !errdefs.IsUnavailable(last.err) || !p.e.awaitDaemon(ctx, p.container) {
			break
		}
	}
	return last
}

// sendKill kills, by the next daemon if one dies with the request.
func (e *Executor) sendKill(ctx context.Context, r *tasksapi.KillRequest) (err error) {
	for range daemonDeaths {
		_, err = e.client.TaskService().Kill(ctx, r, grpc.WaitForReady(true))
		if err = native(err); !errdefs.IsUnavailable(err) || ctx.Err() != nil {
			break
		}
	}
	return err
}

// awaitDaemon waits until the daemon answers again, and says whether it does.
func (e *Executor) awaitDaemon(ctx context.Context, container string) bool {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	_, err := e.client.TaskService().Get(ctx, &tasksapi.GetRequest{ContainerID: container}, grpc.WaitForReady(true))
	return ctx.Err() == nil && !errdefs.IsUnavailable(native(err))
}

func (p *process) closeIO(ctx context.Context) error {
	ctx, cancel := p.e.callContext(ctx)
	defer cancel()
	_, err := p.e.client.TaskService().CloseIO(ctx, &tasksapi.CloseIORequest{
		ContainerID: p.container, ExecID: p.exec, Stdin: true,
	})
	return native(err)
}

func native(err error) error { return errgrpc.ToNative(err) }

// gone says that the process of a call had ended already.
func gone(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)
}
