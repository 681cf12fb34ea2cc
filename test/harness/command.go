package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// commandLimit bounds each client program.
const commandLimit = 5 * time.Minute

// Result is what a client program did.
type Result struct {
	Args           []string
	Stdout, Stderr string
	Code           int // exit code, 128+n after signal n
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit code %d\nstdout: %q\nstderr: %q", strings.Join(r.Args, " "), r.Code, r.Stdout, r.Stderr)
}

// Ctr runs stock ctr in the daemon's namespace.
func (d *Daemon) Ctr(tb testing.TB, args ...string) Result {
	tb.Helper()
	return d.Exec(tb, "", append([]string{d.Programs.Ctr}, args...)...)
}

// MustCtr is Ctr for a command that must succeed; it returns its stdout.
func (d *Daemon) MustCtr(tb testing.TB, args ...string) string {
	tb.Helper()
	return must(tb, d.Ctr(tb, args...))
}

// Berth runs berth in the daemon's namespace.
func (d *Daemon) Berth(tb testing.TB, args ...string) Result {
	tb.Helper()
	return d.Exec(tb, "", append([]string{d.Programs.Berth}, args...)...)
}

// MustBerth is Berth for a command that must succeed; it returns its stdout.
func (d *Daemon) MustBerth(tb testing.TB, args ...string) string {
	tb.Helper()
	return must(tb, d.Berth(tb, args...))
}

func must(tb testing.TB, r Result) string {
	tb.Helper()
	if r.Code != 0 {
		tb.Fatal(r)
	}
	return r.Stdout
}

// Exec runs a program with the daemon's environment, this stdin and its end,
// and waits for its exit.
func (d *Daemon) Exec(tb testing.TB, stdin string, args ...string) Result {
	tb.Helper()
	p := d.Spawn(tb, args...)
	p.Type(tb, stdin)
	p.CloseStdin(tb)
	return p.Wait(tb)
}

// Process is a client program that runs beside the test.
type Process struct {
	cmd            *exec.Cmd
	stdin          io.WriteCloser
	cancel         context.CancelFunc
	stdout, stderr lockedBuffer
	done           chan struct{} // closed once err and cmd.ProcessState are set
}

// Spawn starts a program with the daemon's environment. It is killed at the
// test's end if it still runs.
func (d *Daemon) Spawn(tb testing.TB, args ...string) *Process {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	p := &Process{cancel: cancel, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	p.cmd.Env = d.Env()
	p.cmd.Dir = d.Dir
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	// A container must not keep the test waiting through an inherited pipe.
	p.cmd.WaitDelay = 5 * time.Second
	stdin, err := p.cmd.StdinPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		cancel()
		tb.Fatal(err)
	}
	p.stdin = stdin
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the state is in p.cmd.ProcessState
	}()
	tb.Cleanup(func() {
		cancel()
		<-p.done
	})
	return p
}

// Type writes to the program's stdin. A program that has ended reads nothing,
// which is no failure.
func (p *Process) Type(tb testing.TB, text string) {
	tb.Helper()
	if _, err := io.WriteString(p.stdin, text); err != nil && !gone(err) {
		tb.Fatal(err)
	}
}

// CloseStdin ends the program's stdin.
func (p *Process) CloseStdin(tb testing.TB) {
	tb.Helper()
	if err := p.stdin.Close(); err != nil && !gone(err) {
		tb.Fatal(err)
	}
}

func gone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed)
}

// Wait waits for the program's end.
func (p *Process) Wait(tb testing.TB) Result {
	tb.Helper()
	<-p.done
	p.cancel()
	r := Result{Args: p.cmd.Args, Stdout: p.stdout.String(), Stderr: p.stderr.String()}
	state := p.cmd.ProcessState
	r.Code = state.ExitCode()
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Code = 128 + int(ws.Signal())
		if ws.Signal() == syscall.SIGKILL {
			tb.Fatalf("%s: killed; does it hang?\nstdout: %q\nstderr: %q", r.Args, r.Stdout, r.Stderr)
		}
	}
	return r
}

// Signal sends a signal to the program, if it has not ended.
func (p *Process) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Fatal(err)
	}
}

// Stdout is what the program has written so far.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr is what the program has written so far.
func (p *Process) Stderr() string { return p.stderr.String() }

// AwaitOutput waits until the program's stdout has the text.
func (p *Process) AwaitOutput(tb testing.TB, text string) {
	tb.Helper()
	ok := Poll(30*time.Second, func() bool { return strings.Contains(p.Stdout(), text) })
	if !ok {
		tb.Fatalf("%s: no %q in its output\nstdout: %q\nstderr: %q", p.cmd.Args, text, p.Stdout(), p.Stderr())
	}
}

// lockedBuffer may be read while a program writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
