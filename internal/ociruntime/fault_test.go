package ociruntime_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/fakeoci/fault"
)

func fakeBench(t *testing.T, rules ...fault.Rule) *bench {
	t.Helper()
	b := newBench(t, subjects[0])
	faketest.Order(t, b.Root, rules...)
	return b
}

// calls returns how the calls of one subcommand looked.
func (b *bench) calls(op string) (found []string) {
	for _, args := range faketest.Calls(b.t, b.Root) {
		if args[0] == op {
			found = append(found, strings.Join(args, " "))
		}
	}
	return found
}

// struck waits until the first ordered failure has happened.
func (b *bench) struck() {
	b.t.Helper()
	for deadline := time.Now().Add(limit); faketest.Hits(b.t, b.Root, 0) == 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("the runtime was not called")
		}
	}
}

func TestTimeout(t *testing.T) {
	for _, at := range []fault.Point{fault.Before, fault.Middle, fault.After} {
		t.Run(string(at), func(t *testing.T) {
			b := fakeBench(t, fault.Rule{Op: "create", At: at, Action: fault.Hang})
			b.Timeout = 300 * time.Millisecond
			c := b.newBox(sleeper())
			_, err := c.Create(ctx(t), c.args())
			wantError(t, err, "create", nil, "timed out after")
			wantError(t, err, "create", nil, "and was killed")
			if !errors.Is(err, context.DeadlineExceeded) || !errdefs.IsDeadlineExceeded(err) {
				t.Errorf("%v is no exceeded deadline", err)
			}
			b.Timeout = 0
			if err := c.Delete(ctx(t), c.id, true); err != nil {
				t.Fatal(err)
			}
			_, err = c.State(ctx(t), c.id)
			wantError(t, err, "state", errdefs.ErrNotFound, "")
		})
	}
}

func TestCallerGivesUp(t *testing.T) {
	b := fakeBench(t, fault.Rule{Op: "state", Action: fault.Hang})
	b.newBox(sleeper()).create()
	c, cancel := context.WithCancel(ctx(t))
	failed := make(chan error, 1)
	go func() {
		_, err := b.State(c, "x")
		failed <- err
	}()
	b.struck()
	cancel()
	err := <-failed
	wantError(t, err, "state", nil, "given up by its caller")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not canceled", err)
	}

	// With a context that has ended nothing is run.
	before := len(faketest.Calls(t, b.Root))
	_, err = b.State(c, "x")
	wantError(t, err, "state", nil, "before it could run")
	if got := len(faketest.Calls(t, b.Root)); got != before {
		t.Errorf("%d calls were made", got-before)
	}
}

// A helper that the runtime started dies with it.
func TestTimeoutKillsTheGroup(t *testing.T) {
	b := newBench(t, subjects[0])
	pidFile := filepath.Join(b.dir, "helper")
	b.Binary = script(t, "sleep 1000 & echo $! > "+pidFile+"\nwait")
	b.Timeout = 500 * time.Millisecond
	wantError(t, b.Start(ctx(t), "x"), "start", nil, "timed out")
	data, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatal(err)
	}
	if got := reap(t, pid); got != 128+9 {
		t.Errorf("the helper ended with %d", got)
	}
}

func TestCrash(t *testing.T) {
	b := fakeBench(t,
		fault.Rule{Op: "create", At: fault.Middle, Action: fault.Crash, Times: 1},
		fault.Rule{Op: "start", Action: fault.Crash, Times: 1},
	)
	c := b.newBox(sleeper())
	_, err := c.Create(ctx(t), c.args())
	wantError(t, err, "create", nil, "signal: killed")
	// What the crash left is what force is for.
	if err := c.Delete(ctx(t), c.id, true); err != nil {
		t.Fatal(err)
	}
	reapOrphans(t)
	c.create()
	wantError(t, c.Start(ctx(t), c.id), "start", nil, "signal: killed")
	c.start()
	if got := c.status(); got != "running" {
		t.Errorf("status is %q", got)
	}
}

func TestPidFile(t *testing.T) {
	for name, rule := range map[string]fault.Rule{
		"missing":  {Action: fault.NoPid},
		"text":     {Action: fault.BadPid, Message: "pid"},
		"empty":    {Action: fault.BadPid},
		"zero":     {Action: fault.BadPid, Message: "0"},
		"init":     {Action: fault.BadPid, Message: "1"},
		"self":     {Action: fault.BadPid, Message: fmt.Sprint(os.Getpid())},
		"negative": {Action: fault.BadPid, Message: "-1"},
		"huge":     {Action: fault.BadPid, Message: "4194305"},
		"long":     {Action: fault.BadPid, Message: strings.Repeat("7", 1<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			rule.Op = "create"
			b := fakeBench(t, rule)
			c := b.newBox(sleeper())
			args := c.args()
			// The pid of an earlier try must not be taken for this one's.
			if err := os.WriteFile(args.PidFile, []byte("4000000"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := c.Create(ctx(t), args)
			wantError(t, err, "create", errdefs.ErrInternal, "left no valid pid")
		})
	}
}

func TestExitMessage(t *testing.T) {
	b := fakeBench(t, fault.Rule{Op: "start", Action: fault.Exit, Code: 9, Message: "mount: no space left on device"})
	c := b.newBox(sleeper())
	c.create()
	err := c.Start(ctx(t), c.id)
	wantError(t, err, "start", errdefs.ErrResourceExhausted, "mount: no space left on device")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("the exit code is not in %v", err)
	}
}

func TestMissingBinary(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(notExecutable, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	noInterpreter := script(t, "")
	if err := os.WriteFile(noInterpreter, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		binary, text string
		class        error
	}{
		{"no-such-runtime", `"no-such-runtime" was not found in PATH: install runc`, errdefs.ErrNotFound},
		{"/no/such/runtime", `"/no/such/runtime" was not found: install runc`, errdefs.ErrNotFound},
		{notExecutable, "may not be executed", errdefs.ErrFailedPrecondition},
		{noInterpreter, "was not found", errdefs.ErrNotFound},
	} {
		r := ociruntime.Runtime{Binary: f.binary}
		err := r.Start(ctx(t), "x")
		wantError(t, err, "start", f.class, f.text)
		for _, word := range []string{"executable file not found", "permission denied"} {
			if strings.Contains(err.Error(), word) {
				t.Errorf("%q reads like a program that is missing in the container", err)
			}
		}
	}
}

// script makes a runtime of a few lines of shell.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvironmentAndFiles(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("KEPT", "yes")
	r := ociruntime.Runtime{Binary: script(t, `echo "${NOTIFY_SOCKET-none} ${LISTEN_FDS-none} $KEPT $PWD"`)}
	if got, err := r.Version(ctx(t)); err != nil || got != "none none yes /" {
		t.Errorf("the runtime saw %q, %v", got, err)
	}
	// File 3 is the directory that ls reads.
	r.Binary = script(t, "exec ls /proc/self/fd")
	if got, err := r.Version(ctx(t)); err != nil || got != "0\n1\n2\n3" {
		t.Errorf("the runtime had the files %q, %v", got, err)
	}
}

// The stdout of the runtime is read while it runs, to the limit and no further, and
// a process that keeps it open does not hold the caller.
func TestOutput(t *testing.T) {
	r := ociruntime.Runtime{Binary: script(t, `head -c 1000000 /dev/zero | tr '\0' x`)}
	if got, err := r.Version(ctx(t)); err != nil || len(got) != 1000000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r.Binary = script(t, `head -c 2000000 /dev/zero`)
	_, err := r.Version(ctx(t))
	wantError(t, err, "version", errdefs.ErrOutOfRange, "printed more than")

	pidFile := filepath.Join(t.TempDir(), "pid")
	r.Binary = script(t, "sleep 1000 & echo $! > "+pidFile+"; echo version")
	if got, err := r.Version(ctx(t)); err != nil || got != "version" {
		t.Errorf("version is %q, %v", got, err)
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reap(t, pid)

	r.Binary = script(t, "true")
	_, err = r.Version(ctx(t))
	wantError(t, err, "version", errdefs.ErrInternal, "no version")
	_, err = r.State(ctx(t), "x")
	wantError(t, err, "state", errdefs.ErrInternal, "it printed nothing")
	r.Binary = script(t, "echo '[0]'")
	_, err = r.Ps(ctx(t), "x")
	wantError(t, err, "ps", errdefs.ErrInternal, "which is no pid")
}

// The parent death signal is the thread's, not the process's: a thread that Go
// retires meanwhile must not take the runtime along.
func TestThreadsEndDuringACall(t *testing.T) {
	b := fakeBench(t, fault.Rule{Op: "create", At: fault.Middle, Action: fault.Sleep, SleepMillis: 1000})
	c := b.newBox(sleeper())
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					runtime.LockOSThread() // never unlocked: the thread ends
				}()
				<-ended
			}
		})
	}
	c.create()
	close(done)
	wg.Wait()
}

// When the caller is killed its runtime call is too.
func TestCallerDies(t *testing.T) {
	b := fakeBench(t, fault.Rule{Op: "state", Action: fault.Hang})
	cmd := exec.Command("/proc/self/exe", callerArg, b.Binary, b.Root, "x")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.struck()
	child := onlyChild(t, cmd.Process.Pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the caller ended by itself")
	}
	if got := reap(t, child); got != 128+9 {
		t.Errorf("the runtime ended with %d", got)
	}
}

func onlyChild(t *testing.T, parent int) int {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		defer f.Close()
		words := bufio.NewScanner(f)
		words.Split(bufio.ScanWords)
		var pid int
		if words.Scan() {
			if _, err := fmt.Sscan(words.Text(), &pid); err == nil {
				return pid
			}
		}
	}
	t.Fatal("the caller has no child")
	return 0
}

func TestConcurrentCallsLeakNothing(t *testing.T) {
	b := fakeBench(t, fault.Rule{Op: "pause", Action: fault.Exit, Message: "no"})
	c := b.running()
	before := openFiles(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 4 {
				if _, err := c.State(ctx(t), c.id); err != nil {
					t.Error(err)
				}
				var failed *task.RuntimeError
				if err := c.Pause(ctx(t), c.id); !errors.As(err, &failed) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
	if got := len(b.calls("state")); got < 64 {
		t.Errorf("%d calls of state", got)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Failures can be ordered from outside the root too.
func TestWhereOrdersComeFrom(t *testing.T) {
	rule := fault.Rule{Op: "create", Action: fault.Exit, Message: "ordered"}
	byEnv, byAnnotation := t.TempDir(), t.TempDir()
	faketest.Order(t, byEnv, rule)
	faketest.Order(t, byAnnotation, rule)

	b := newBench(t, subjects[0])
	c := b.newBox(sleeper())
	spec := faketest.Spec("sleep", "1000")
	spec.Annotations = map[string]string{fault.DirAnnotation: byAnnotation}
	faketest.WriteBundle(t, c.bundle, spec)
	_, err := c.Create(ctx(t), c.args())
	wantError(t, err, "create", nil, "ordered")

	c = b.newBox(sleeper())
	c.create()
	t.Setenv(fault.DirEnv, byEnv)
	c = b.newBox(sleeper())
	_, err = c.Create(ctx(t), c.args())
	wantError(t, err, "create", nil, "ordered")
}
