package reap

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spawnAs starts a child that gets a certain pid, which must be free: the kernel
// gives the one after ns_last_pid. A new thread of this process may take it, so
// that it is tried again.
func spawnAs(t *testing.T, pid int, script string) {
	t.Helper()
	for range 2000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		got := spawn(t, script)
		if got == pid {
			return
		}
		if err := unix.Kill(got, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { _, ok := CollectChild(got); return ok })
	}
	t.Fatalf("no child got pid %d", pid)
}

const ownPidsVar = "REAP_TEST_OWN_PIDS"

// A pid that is used again belongs to the new process alone: exits, signals and
// the check of the start time. The test runs in a pid namespace of its own, so
// that no other process of the machine meets a pid twice.
func TestPidIsUsedAgain(t *testing.T) {
	if os.Getenv(ownPidsVar) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPidIsUsedAgain$", "-test.v", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), ownPidsVar+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestPidIsUsedAgain") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	r := newReaper(t, nil)
	release := r.Hold()
	defer release()
	exits := make(chan Exit, 4)
	watch := func(pid int, start uint64) (*Process, error) {
		return r.Watch(pid, start, func(p *Process, e Exit) { exits <- e; p.Done() })
	}
	for i := range 10 {
		pid := spawn(t, "exit "+strconv.Itoa(i))
		start, err := StartTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		old, err := watch(pid, start)
		if err != nil {
			t.Fatal(err)
		}
		if e := next(t, exits); e.Pid != pid || e.Status != i {
			t.Fatalf("%+v, want status %d of pid %d", e, i, pid)
		}
		// Done, which reaps, may still be at work: the pid is free only then.
		waitFor(t, func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
		// A start time has the grain of a clock tick.
		time.Sleep(20 * time.Millisecond)

		spawnAs(t, pid, "exec sleep 1000")
		if err := old.Signal(unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
			t.Errorf("a signal to the one that has ended: %v", err)
		}
		if _, err := watch(pid, start); !errors.Is(err, unix.ESRCH) {
			t.Errorf("the new process taken for the old one: %v", err)
		}
		p, err := watch(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		old.Done() // again, and of no effect on the new one
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if e := next(t, exits); e.Pid != pid || e.Status != 128+int(unix.SIGTERM) {
			t.Fatalf("%+v, want the new process's end by SIGTERM", e)
		}
	}
	select {
	case e := <-exits:
		t.Errorf("told once more: %+v", e)
	default:
	}
}
