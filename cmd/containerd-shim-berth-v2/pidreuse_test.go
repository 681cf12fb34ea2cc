package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

const ownPidsVar = "SHIM_TEST_OWN_PIDS"

// Execs whose pids are used again are told apart: each has its own exit, and
// what is asked of one that has ended does not reach the one with its pid. The
// kernel is made to give the pids again, in a pid namespace of the test's own.
func TestExecPidsAreUsedAgain(t *testing.T) {
	if os.Getenv(ownPidsVar) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestExecPidsAreUsedAgain$", "-test.v", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), ownPidsVar+"=1", "BERTH_TEST_PROGRAMS="+filepath.Dir(binary))
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestExecPidsAreUsedAgain") {
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
	d := newDaemon(t)
	s, _ := d.guarded()
	r := d.remote(s, v3, "")
	c := r.make(t, "c", tasktest.Forever, true)
	ended := map[uint32]task.Process{} // the last with a pid
	const base, want = 20000, 10
	again := 0
	for i := 0; again < want; i++ {
		if i == 500 {
			t.Fatalf("%d of %d execs got a pid again", again, i)
		}
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(base)), 0); err != nil {
			t.Fatal(err)
		}
		p, err := c.Exec(ctx(t), fmt.Sprintf("e%d", i), r.Exec(t, "exec sleep 1000"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := p.Start(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		sig := syscall.Signal(34 + i%31) // real-time signals, of which each is an end of its own
		if old := ended[pid]; old != nil {
			again++
			if err := old.Kill(ctx(t), unix.SIGKILL, false); !errdefs.IsNotFound(err) {
				t.Errorf("kill of one that has ended: %v", err)
			}
			if st, err := p.State(ctx(t)); err != nil || st.Status != task.Running || st.Pid != pid {
				t.Fatalf("the new process %d: %+v, %v", pid, st, err)
			}
			if err := r.checkExit(old, "c", endOf(old)); err != nil {
				t.Error(err)
			}
		}
		if err := p.Kill(ctx(t), sig, false); err != nil {
			t.Fatal(err)
		}
		exit, err := p.Wait(ctx(t))
		if err != nil || exit.Status != 128+uint32(sig) {
			t.Fatalf("exec %d with pid %d: %+v, %v; want signal %d", i, pid, exit, err, sig)
		}
		ended[pid] = p
	}
	r.kill(t, c)
	r.noZombies(t)
}

// endOf is what the test's exec of this name ends with.
func endOf(p task.Process) uint32 {
	var i uint32
	if _, err := fmt.Sscanf(p.ExecID(), "e%d", &i); err != nil {
		return 0
	}
	return 128 + 34 + i%31
}
