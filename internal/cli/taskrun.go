package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/attach"
)

// quietTime is how long the output of a process that has ended may be silent
// before it counts as complete: a child in the background may hold it open.
const quietTime = 300 * time.Millisecond

// exitStatus is how a process ended.
type exitStatus struct {
	code uint32
	at   time.Time
}

// running is a process that was started by this command.
type running struct {
	s *session
	// id is the container's, execID the exec's or empty.
	id, execID string
	pid        uint32
	io         *attach.IO // nil where nothing is attached
	exit       <-chan exitAnswer
}

type exitAnswer struct {
	exitStatus
	err error
}

// startTask creates and starts the task of a container. On an error nothing is
// left of its streams; the task and the container are the caller's to remove.
// The terminal is raw from here on, and not before: until then Ctrl-C is the
// user's way to interrupt this command.
func (s *session) startTask(ctx context.Context, m *made, st *streams, term *attach.Terminal, pidFile string) (_ *running, err error) {
	if err := term.Raw(); err != nil {
		return nil, err
	}
	p, io, err := st.open(s.App, m.ID, m.record.Log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && io != nil {
			io.Close()
		}
	}()
	req := &tasks.CreateTaskRequest{
		ContainerID: m.ID, Terminal: st.terminal, Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr,
		Checkpoint: m.checkpoint, Options: m.taskOptions,
	}
	for _, mnt := range m.rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: mnt.Type, Source: mnt.Source, Target: mnt.Target, Options: mnt.Options})
	}
	created, err := s.client.TaskService().Create(ctx, req)
	if err != nil {
		return nil, s.runtimeError(m, err)
	}
	if created.Pid != 0 { // one that is restored gets its processes by its start
		if err := writePID(pidFile, created.Pid); err != nil {
			return nil, fmt.Errorf("pid file: %w", err)
		}
	}
	t := &running{s: s, id: m.ID, pid: created.Pid, io: io}
	if !st.detach {
		// Before the start, so that the exit is not missed, and without the
		// deadline of the command line, which is for the daemon's answers.
		t.wait(context.WithoutCancel(ctx))
	}
	started, err := s.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: m.ID})
	if err != nil {
		return nil, s.runtimeError(m, err)
	}
	if created.Pid == 0 {
		if err := writePID(pidFile, started.Pid); err != nil {
			return nil, fmt.Errorf("pid file: %w", err)
		}
	}
	if io != nil && st.detach {
		io.Keep()
		return t, io.Close()
	}
	return t, t.attach(ctx)
}

// runtimeError names what failed. Where the runtime itself is missing it says so.
func (s *session) runtimeError(m *made, err error) error {
	err = native(err)
	if errdefs.IsAlreadyExists(err) {
		return say(errdefs.ErrAlreadyExists, "container %q: it runs already", m.ID)
	}
	return fmt.Errorf("container %q: %w", m.ID, err)
}

// attach begins to copy the streams of a process that was started.
func (t *running) attach(ctx context.Context) error {
	if t.io == nil {
		return nil
	}
	// Who sees output may send a signal: it must be caught by then.
	t.s.forwarding.Wait()
	return t.io.Start(func() {
		ctx, cancel := cleanup(ctx)
		defer cancel()
		// The process may have ended meanwhile: nothing is to be closed then.
		_, _ = t.s.client.TaskService().CloseIO(ctx, &tasks.CloseIORequest{ContainerID: t.id, ExecID: t.execID, Stdin: true})
	})
}

// wait asks for the exit in the background, of a process in the foreground of
// this command. A daemon that goes away and comes back is asked again.
func (t *running) wait(ctx context.Context) {
	t.s.catchForwarded()
	got := make(chan exitAnswer, 1)
	t.exit = got
	go func() { // ends with the process, or with the session's connection
		status, err := t.s.waitExit(ctx, t.id, t.execID)
		got <- exitAnswer{status, err}
	}()
}

// reconnectTime is how long a daemon may be away while a command waits.
const reconnectTime = time.Minute

// waitExit waits for the end of a process, also over a restart of the daemon.
func (s *session) waitExit(ctx context.Context, id, execID string) (exitStatus, error) {
	var lost time.Time
	for {
		r, err := s.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: id, ExecID: execID})
		if err == nil {
			return exitStatus{code: r.ExitStatus, at: protobuf.FromTimestamp(r.ExitedAt)}, nil
		}
		err = native(err)
		if !errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return exitStatus{}, err
		}
		if lost.IsZero() {
			lost = time.Now()
		} else if time.Since(lost) > reconnectTime {
			return exitStatus{}, fmt.Errorf("the daemon is gone (the container may go on; see berth ps): %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// follow is the foreground: it forwards signals and sizes until the process
// has ended, lets the output come to its end, and deletes the process.
func (s *session) follow(ctx context.Context, t *running, term *attach.Terminal) (exitStatus, error) {
	interrupted := errors.Is(context.Cause(ctx), errInterrupted)
	signals := s.takeSignals()
	// From here on a signal is the process's, and the command line's deadline
	// was for the start.
	ctx = context.WithoutCancel(ctx)
	if interrupted {
		t.kill(ctx, unix.SIGTERM)
	}
	t.resize(ctx, term)
	stopped, release := watchStops(term)
	defer release()
	var broken, detached <-chan struct{}
	if t.io != nil {
		broken, detached = t.io.Broken(), t.io.Detached()
		defer t.io.Close()
	}
	for {
		select {
		case a := <-t.exit:
			if a.err != nil {
				return a.exitStatus, fmt.Errorf("container %q: wait: %w", t.id, a.err)
			}
			return a.exitStatus, t.finish(ctx)
		case sig := <-signals:
			switch sig {
			case unix.SIGPIPE:
			case unix.SIGWINCH: // never forwarded: to some servers it says "end"
				t.resize(ctx, term)
			default:
				if n, ok := sig.(unix.Signal); ok {
					t.kill(ctx, n)
				}
			}
		case sig := <-stopped:
			t.stop(ctx, term, sig)
		case <-detached:
			t.io.Keep()
			return exitStatus{}, errDetached
		case <-broken:
			broken = nil
			t.endUnread(ctx)
		}
	}
}

// unreadTime is how long a process may go on whose output cannot be written.
const unreadTime = 10 * time.Second

// endUnread ends a process whose output has no reader any more. A program here
// would get SIGPIPE, which the first process of a container does not. It is
// asked to end, and killed at once when that is no question for it.
func (t *running) endUnread(ctx context.Context) {
	// EIO is a terminal that was hung up, and nobody is there to read this.
	if err := t.io.Err(); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.EIO) {
		t.s.warnf("container %q: it is ended, its output cannot be written: %v", t.id, err)
	}
	t.kill(ctx, unix.SIGTERM)
	if !catches(t.pid, unix.SIGTERM) {
		t.kill(ctx, unix.SIGKILL)
		return
	}
	time.AfterFunc(unreadTime, func() { t.kill(ctx, unix.SIGKILL) })
}

// catches says whether a process has a handler for a signal, which is needed
// to end the first process of a pid namespace other than by KILL.
func catches(pid uint32, sig unix.Signal) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true // it is gone, or not to be seen from here
	}
	_, mask, _ := strings.Cut(string(data), "\nSigCgt:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	bits, err := strconv.ParseUint(mask, 16, 64)
	return err != nil || bits&(1<<(sig-1)) != 0
}

// watchStops takes the signals of job control while this command may have the
// terminal in raw mode: a shell must not get it like that.
func watchStops(term *attach.Terminal) (stops <-chan os.Signal, release func()) {
	if !term.Attached() {
		return nil, func() {}
	}
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGTSTP, unix.SIGCONT)
	return c, func() { signal.Stop(c) }
}

// stop suspends this command, and takes the terminal again when it goes on.
func (t *running) stop(ctx context.Context, term *attach.Terminal, sig os.Signal) {
	if sig == unix.SIGTSTP {
		term.Restore()
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // returns with SIGCONT
	}
	// In the background this stops the command again, as it does any other.
	if err := term.Raw(); err != nil {
		t.s.warnf("%v", err)
	}
	t.resize(ctx, term)
}

// errDetached says that the user has let go of a process that goes on.
var errDetached error = &exitError{code: 0}

// finish brings the output to its end and deletes the process.
func (t *running) finish(ctx context.Context) error {
	ended := t.io == nil || t.io.Drain(ctx, quietTime)
	ctx, cancel := cleanup(ctx)
	defer cancel()
	var err error
	if t.execID != "" {
		_, err = t.s.client.TaskService().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: t.id, ExecID: t.execID})
	} else {
		_, err = t.s.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: t.id})
	}
	if !ended {
		// The delete closed the shim's ends: what is still on its way comes now.
		t.io.Drain(ctx, quietTime)
	}
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %q: delete the ended process: %w", t.id, err)
	}
	return nil
}

// kill sends a signal; to a process that has ended it does nothing.
func (t *running) kill(ctx context.Context, sig unix.Signal) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	_, err := t.s.client.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: t.id, ExecID: t.execID, Signal: uint32(sig)})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		t.s.warnf("container %q: signal %v: %v", t.id, sig, err)
	}
}

// resize gives the process the size of the user's terminal.
func (t *running) resize(ctx context.Context, term *attach.Terminal) {
	w, h := term.Size()
	if w == 0 || h == 0 {
		return
	}
	ctx, cancel := cleanup(ctx)
	defer cancel()
	_, err := t.s.client.TaskService().ResizePty(ctx, &tasks.ResizePtyRequest{
		ContainerID: t.id, ExecID: t.execID, Width: uint32(w), Height: uint32(h),
	})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) && t.s.debug {
		t.s.warnf("container %q: resize: %v", t.id, err)
	}
}
