package harness

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Terminal is a client program with a terminal of its own.
type Terminal struct {
	cmd    *exec.Cmd
	master console.Console
	output lockedBuffer
	copied chan struct{} // closed once all output is in the buffer
	done   chan struct{} // closed once cmd.Wait has returned
}

// SpawnTerminal starts a program on a new terminal of that size, as its
// controlling terminal. It is killed at the test's end if it still runs.
func (d *Daemon) SpawnTerminal(tb testing.TB, width, height uint16, args ...string) *Terminal {
	tb.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		tb.Fatal(err)
	}
	term := &Terminal{master: master, copied: make(chan struct{}), done: make(chan struct{})}
	term.Resize(tb, width, height)
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		tb.Fatal(err)
	}
	term.cmd = exec.Command(args[0], args[1:]...)
	term.cmd.Env = d.Env()
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = term.cmd.Start()
	slave.Close()
	if err != nil {
		master.Close()
		tb.Fatal(err)
	}
	go func() {
		defer close(term.copied)
		_, _ = io.Copy(&term.output, master) // EIO is the end of a terminal
	}()
	go func() {
		defer close(term.done)
		_ = term.cmd.Wait() // the state is in cmd.ProcessState
	}()
	tb.Cleanup(func() {
		term.killSession()
		<-term.done
		<-term.copied
		master.Close()
	})
	return term
}

// killSession ends the program and what it started on its terminal: a shell's
// jobs would keep the terminal open.
func (t *Terminal) killSession() {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if sid, err := unix.Getsid(pid); err == nil && sid == t.cmd.Process.Pid {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// Resize gives the terminal another size.
func (t *Terminal) Resize(tb testing.TB, width, height uint16) {
	tb.Helper()
	if err := t.master.Resize(console.WinSize{Width: width, Height: height}); err != nil {
		tb.Fatal(err)
	}
}

// Type writes to the terminal as its user does.
func (t *Terminal) Type(tb testing.TB, text string) {
	tb.Helper()
	if _, err := io.WriteString(t.master, text); err != nil {
		tb.Fatal(err)
	}
}

// Output is what was shown so far.
func (t *Terminal) Output() string { return t.output.String() }

// AwaitOutput waits until the terminal has shown the text.
func (t *Terminal) AwaitOutput(tb testing.TB, text string) {
	tb.Helper()
	if !Poll(30*time.Second, func() bool { return strings.Contains(t.Output(), text) }) {
		tb.Fatalf("%s: no %q on the terminal: %q", t.cmd.Args, text, t.Output())
	}
}

// AwaitReply types the line again and again until the terminal shows the text:
// for what the other side comes to know a little later, as its size.
func (t *Terminal) AwaitReply(tb testing.TB, line, text string) {
	tb.Helper()
	for range 100 {
		t.Type(tb, line+"\n")
		if Poll(300*time.Millisecond, func() bool { return strings.Contains(t.Output(), text) }) {
			return
		}
	}
	tb.Fatalf("%s: %q is never answered with %q: %q", t.cmd.Args, line, text, t.Output())
}

// Wait waits for the program's end and returns its exit code.
func (t *Terminal) Wait(tb testing.TB) int {
	tb.Helper()
	select {
	case <-t.done:
	case <-time.After(commandLimit):
		tb.Fatal(fmt.Errorf("%s does not end: %q", t.cmd.Args, t.Output()))
	}
	return t.cmd.ProcessState.ExitCode()
}
