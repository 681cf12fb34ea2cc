package reap

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// Children whose parent ends come to us, as they do to a shim.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a subreaper:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func newReaper(t *testing.T, a Ancestor) *Reaper {
	t.Helper()
	r, err := New(slog.New(slog.DiscardHandler), a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// spawn starts a child that os/exec does not know of.
func spawn(t *testing.T, script string) int {
	t.Helper()
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// orphan starts a process whose parent ends at once, so that it becomes a
// child of this process, and returns its pid.
func orphan(t *testing.T, script string) int {
	t.Helper()
	out, err := exec.Command("/bin/sh", "-c", "{ "+script+"; } >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func next(t *testing.T, c <-chan Exit) Exit {
	t.Helper()
	select {
	case e := <-c:
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no exit within 20 s")
		return Exit{}
	}
}

func TestStatusOfChildren(t *testing.T) {
	r := newReaper(t, nil)
	release := r.Hold()
	defer release()
	for script, want := range map[string]int{
		"exit 0": 0, "exit 42": 42, "exit 255": 255, "kill -9 $$": 137, "kill -15 $$": 143, "kill -6 $$": 134,
	} {
		got := make(chan Exit, 1)
		pid := spawn(t, script)
		if _, err := r.Watch(pid, 0, func(p *Process, e Exit) { got <- e; p.Done() }); err != nil {
			t.Fatal(err)
		}
		if e := next(t, got); e.Status != want || e.Pid != pid || e.Reason != "" {
			t.Errorf("%s: %+v, want status %d of pid %d", script, e, want, pid)
		}
	}
}

func TestExitBeforeWatchIsKept(t *testing.T) {
	r := newReaper(t, nil)
	release := r.Hold()
	pid := spawn(t, "exit 7")
	waitFor(t, func() bool { return IsZombie(pid) })
	got := make(chan Exit, 1)
	if _, err := r.Watch(pid, 0, func(p *Process, e Exit) { got <- e; p.Done() }); err != nil {
		t.Fatal(err)
	}
	release()
	if e := next(t, got); e.Status != 7 {
		t.Fatalf("%+v", e)
	}
}

func TestManyAtOnce(t *testing.T) {
	r := newReaper(t, nil)
	const n = 300
	got := make(chan Exit, n)
	want := map[int]int{}
	for i := range n {
		release := r.Hold()
		pid := spawn(t, fmt.Sprintf("exit %d", i%256))
		want[pid] = i % 256
		if _, err := r.Watch(pid, 0, func(p *Process, e Exit) { got <- e; p.Done() }); err != nil {
			t.Fatal(err)
		}
		release()
	}
	for range n {
		e := next(t, got)
		if w, ok := want[e.Pid]; !ok || w != e.Status {
			t.Fatalf("%+v, want status %d", e, w)
		}
		delete(want, e.Pid)
	}
}

func TestSignalGoesToThePidfd(t *testing.T) {
	r := newReaper(t, nil)
	got := make(chan Exit, 1)
	release := r.Hold()
	p, err := r.Watch(spawn(t, "exec sleep 60"), 0, func(p *Process, e Exit) { got <- e; p.Done() })
	if err != nil {
		t.Fatal(err)
	}
	release()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := next(t, got); e.Status != 137 {
		t.Fatalf("%+v", e)
	}
	if err := p.Signal(unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		t.Fatalf("signal after the end: %v", err)
	}
}

func TestWatchRefusesAnotherStartTime(t *testing.T) {
	r := newReaper(t, nil)
	start, err := StartTime(os.Getpid())
	if err != nil || start == 0 {
		t.Fatal(start, err)
	}
	if _, err := r.Watch(os.Getpid(), start+1, func(*Process, Exit) {}); !errors.Is(err, unix.ESRCH) {
		t.Fatalf("%v", err)
	}
	p, err := r.Watch(os.Getpid(), start, func(*Process, Exit) {})
	if err != nil {
		t.Fatal(err)
	}
	p.Forget()
}

// olderThan says that the kernel is older than this version.
func olderThan(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &a, &b); err != nil {
		t.Fatal(err)
	}
	return a < major || a == major && b < minor
}

// A grandchild whose parent lives is not ours: the status comes from /proc
// while it is a zombie, and from the pidfd once its parent has reaped it.
func TestStatusOfForeignProcess(t *testing.T) {
	r := newReaper(t, nil)
	for _, reap := range []bool{false, true} {
		t.Run(fmt.Sprintf("reaped=%v", reap), func(t *testing.T) {
			// The parent prints its child's pid, then waits for our word before
			// it reaps; it ends when we say so a second time.
			cmd := exec.Command(os.Args[0], "-test.run=TestParentHelper")
			cmd.Env = append(os.Environ(), "REAP_PARENT=1")
			in, _ := cmd.StdinPipe()
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); cmd.Wait() }()
			var pid int
			if _, err := fmt.Fscan(out, &pid); err != nil {
				t.Fatal(err)
			}
			if reap {
				fd, err := unix.PidfdOpen(pid, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				fmt.Fprintln(in, "exit")
				fmt.Fprintln(in, "reap")
				var word string
				fmt.Fscan(out, &word)
				ws, err := pidfdExitInfo(fd)
				if errors.Is(err, unix.ENOTTY) && olderThan(t, 6, 15) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if StatusOf(ws) != 42 {
					t.Fatalf("status %d", StatusOf(ws))
				}
				return
			}
			got := make(chan Exit, 1)
			if _, err := r.Watch(pid, 0, func(p *Process, e Exit) { got <- e; p.Done() }); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(in, "exit")
			if e := next(t, got); e.Status != 42 {
				t.Fatalf("%+v", e)
			}
		})
	}
}

func TestParentHelper(t *testing.T) {
	if os.Getenv("REAP_PARENT") == "" {
		return
	}
	signal.Ignore(unix.SIGPIPE)
	child := exec.Command("/bin/sh", "-c", "read x; exit 42")
	stdin, _ := child.StdinPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Println(child.Process.Pid)
	var word string
	fmt.Scan(&word)
	fmt.Fprintln(stdin, "x")
	fmt.Scan(&word)
	if word == "reap" {
		child.Wait()
		fmt.Println("reaped")
	}
	fmt.Scan(&word)
	os.Exit(0)
}

type fakeAncestor struct {
	ws     unix.WaitStatus
	reaped chan int
}

func (f *fakeAncestor) Claim(int) error { return nil }
func (f *fakeAncestor) Status(int) (unix.WaitStatus, bool, error) {
	return f.ws, true, nil
}

func (f *fakeAncestor) Reap(pid int) error {
	f.reaped <- pid
	return nil
}

func TestAncestorIsAskedFirst(t *testing.T) {
	a := &fakeAncestor{ws: 9 << 8, reaped: make(chan int, 1)}
	r := newReaper(t, a)
	cmd := exec.Command("/bin/sh", "-c", "sleep 60 & echo $!; wait")
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	var pid int
	fmt.Fscan(out, &pid)
	got := make(chan Exit, 1)
	p, err := r.Watch(pid, 0, func(p *Process, e Exit) { got <- e; p.Done() })
	if err != nil {
		t.Fatal(err)
	}
	p.Signal(unix.SIGTERM)
	if e := next(t, got); e.Status != 9 {
		t.Fatalf("%+v", e)
	}
	if reaped := <-a.reaped; reaped != pid {
		t.Fatalf("reaped %d, not %d", reaped, pid)
	}
}

// The zombie stays until the exit is said to be stored: whoever comes after a
// death in between finds the status.
func TestZombieStaysUntilDone(t *testing.T) {
	r := newReaper(t, nil)
	release := r.Hold()
	pid := spawn(t, "exit 42")
	got := make(chan Exit, 1)
	p, err := r.Watch(pid, 0, func(_ *Process, e Exit) { got <- e })
	if err != nil {
		t.Fatal(err)
	}
	release()
	if e := next(t, got); e.Status != 42 {
		t.Fatalf("%+v", e)
	}
	r.sweep()
	if ws, ok := ChildStatus(pid); !ok || StatusOf(ws) != 42 {
		t.Fatalf("status %d, %v", StatusOf(ws), ok)
	}
	if err := p.Signal(unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		t.Fatalf("signal to a zombie: %v", err)
	}
	p.Done()
	p.Done()
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Fatalf("not reaped: %v", err)
	}
}

func TestOrphansAreSweptButNotUnderHold(t *testing.T) {
	r := newReaper(t, nil)
	release := r.Hold()
	pid := orphan(t, "exec sleep 60")
	unix.Kill(pid, unix.SIGKILL)
	waitFor(t, func() bool { return IsZombie(pid) })
	r.sweep()
	if !IsZombie(pid) {
		t.Fatal("swept although held")
	}
	release()
	waitFor(t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

// The sweep must not take the children of os/exec.
func TestExecChildrenAreNotStolen(t *testing.T) {
	r := newReaper(t, nil)
	for range 100 {
		release := r.Hold()
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
		release()
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatal("not so within 20 s")
		}
		time.Sleep(time.Millisecond)
	}
}
