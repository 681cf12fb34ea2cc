package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// start runs a container in the background that ends with 42 on SIGTERM.
func start(t *testing.T, d *harness.Daemon, id string, flags ...string) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opened for both directions: neither side's open waits for the other's.
	pipe, err := os.OpenFile(ready, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	args := append([]string{"run", "--detach", "--mount", "type=bind,src=" + ready + ",dst=/ready,options=bind"}, flags...)
	d.MustCtr(t, append(args, harness.Image, id,
		"sh", "-c", `trap "exit 42" TERM; echo >/ready; while :; do sleep 0.05; done`)...)
	if err := pipe.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%s does not come to its trap: %v", id, err)
	}
}

// remove kills a container's task and removes both.
func remove(t *testing.T, d *harness.Daemon, id string) {
	t.Helper()
	if d.TaskStatus(t, id) != "STOPPED" {
		d.MustCtr(t, "tasks", "kill", "--signal", "SIGKILL", id)
		d.AwaitStatus(t, id, "STOPPED")
	}
	d.Ctr(t, "tasks", "delete", id) // its exit code may be the task's
	if got := d.TaskStatus(t, id); got != "" {
		t.Errorf("a deleted task is listed as %s", got)
	}
	d.MustCtr(t, "containers", "rm", id)
}

// cgroupValue reads a file of the cgroup of a process, by its name in cgroup
// v1, whose hierarchy of that controller it is in, or else in v2.
func cgroupValue(t *testing.T, pid int, controller, v1, v2 string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	path := ""
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if parts[1] == controller {
			path = filepath.Join("/sys/fs/cgroup", controller, parts[2], v1)
		} else if parts[1] == "" && path == "" {
			path = filepath.Join("/sys/fs/cgroup", parts[2], v2)
		}
	}
	value, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(value)
}

// TestCtrTaskExec runs further processes in a container.
func TestCtrTaskExec(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("exec")
		start(t, d, id)
		r := d.CtrExec(t, nil, id, "sh", "-c", "echo out; echo err >&2; exit 5")
		if r.Code != 5 || r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Error(r)
		}
		r = d.CtrExec(t, []string{"--cwd", "/home", "--user", "app"}, id, "sh", "-c", "pwd; id -u")
		if r.Code != 0 || r.Stdout != "/home\n1000\n" {
			t.Error(r)
		}
		exec := func(args ...string) []string {
			return append([]string{d.Programs.Ctr, "tasks", "exec", "--exec-id", d.ID("e"), id}, args...)
		}
		p := d.Spawn(t, exec("cat")...)
		p.Type(t, "to stdin\n")
		p.AwaitOutput(t, "to stdin\n")
		p.CloseStdin(t)
		if r := p.Wait(t); r.Code != 0 || r.Stdout != "to stdin\n" {
			t.Error(r)
		}
		if r := d.Exec(t, "", exec("/no/such/program")...); r.Code == 0 || !strings.Contains(r.Stderr, "/no/such/program") {
			t.Error(r)
		}
		// A failed start leaves the identifier free.
		if r := d.Exec(t, "", exec("true")...); r.Code != 0 {
			t.Error(r)
		}
		term := d.SpawnTerminal(t, 60, 20, d.Programs.Ctr, "tasks", "exec", "--tty", "--exec-id", d.ID("tty"), id, "sh")
		term.AwaitReply(t, "stty size", "20 60")
		term.Type(t, "exit 6\n")
		if code := term.Wait(t); code != 6 {
			t.Errorf("exit code on a terminal: %d, want 6", code)
		}
		remove(t, d, id)
	})
}

// TestCtrTaskExecDetached leaves a process in the background, which is seen,
// killed and deleted by its own identifier.
func TestCtrTaskExecDetached(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id, execID := d.ID("background"), d.ID("sleeper")
		start(t, d, id)
		// ctr leaves the FIFOs of a detached process: they go with the test's directory.
		d.MustCtr(t, "tasks", "exec", "--detach", "--fifo-dir", t.TempDir(), "--exec-id", execID, id, "sleep", "1000")
		if out := d.MustCtr(t, "tasks", "ps", id); !strings.Contains(out, execID) {
			t.Errorf("the process is not listed:\n%s", out)
		}
		if r := d.Ctr(t, "tasks", "delete", "--exec-id", execID, id); r.Code == 0 {
			t.Error("a running process was deleted")
		}
		d.MustCtr(t, "tasks", "kill", "--exec-id", execID, "--signal", "SIGKILL", id)
		harness.Await(t, 10*time.Second, "delete of the killed process with its exit code", func() bool {
			return d.Ctr(t, "tasks", "delete", "--exec-id", execID, id).Code == 137
		})
		if got := d.TaskStatus(t, id); got != "RUNNING" {
			t.Errorf("the container is %s after the end of another of its processes", got)
		}
		remove(t, d, id)
	})
}

// TestCtrTaskKill checks that the signal arrives and the exit code is exact.
func TestCtrTaskKill(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("kill")
		start(t, d, id)
		exit := d.WaitTask(t, id)
		d.MustCtr(t, "tasks", "kill", "--signal", "SIGTERM", id)
		if code := exit(); code != 42 {
			t.Errorf("exit code %d, want 42", code)
		}
		d.AwaitStatus(t, id, "STOPPED")
		if r := d.Ctr(t, "tasks", "kill", id); r.Code == 0 {
			t.Error("a stopped task was killed")
		}
		if r := d.Ctr(t, "tasks", "exec", "--exec-id", d.ID("late"), id, "true"); r.Code == 0 {
			t.Error("a process was started in a stopped task")
		}
		remove(t, d, id)
		if r := d.Ctr(t, "tasks", "kill", id); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("kill of what is gone: %s", r)
		}
	})
}

// TestCtrTaskKillAll ends all processes of a container at once.
func TestCtrTaskKillAll(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("all")
		start(t, d, id)
		d.MustCtr(t, "tasks", "exec", "--detach", "--fifo-dir", t.TempDir(), "--exec-id", d.ID("more"), id, "sleep", "1000")
		d.MustCtr(t, "tasks", "kill", "--all", "--signal", "SIGKILL", id)
		d.AwaitStatus(t, id, "STOPPED")
		remove(t, d, id)
	})
}

// TestCtrTaskPause freezes and thaws a container.
func TestCtrTaskPause(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("pause")
		start(t, d, id)
		d.MustCtr(t, "tasks", "pause", id)
		if got := d.TaskStatus(t, id); got != "PAUSED" {
			t.Errorf("status %s after pause", got)
		}
		if r := d.Ctr(t, "tasks", "exec", "--exec-id", d.ID("frozen"), id, "true"); r.Code == 0 {
			t.Error("a process was started in a paused container")
		}
		d.MustCtr(t, "tasks", "resume", id)
		if got := d.TaskStatus(t, id); got != "RUNNING" {
			t.Errorf("status %s after resume", got)
		}
		d.MustCtr(t, "tasks", "exec", "--exec-id", d.ID("thawed"), id, "true")
		remove(t, d, id)
	})
}

// TestCtrTaskPsAndMetrics compares the listed pids and figures with the cgroup.
func TestCtrTaskPsAndMetrics(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("ps")
		start(t, d, id, "--memory-limit", fmt.Sprint(64<<20))
		pid := d.TaskPID(t, id)
		lines := strings.Split(d.MustCtr(t, "tasks", "ps", id), "\n")
		if fields := strings.Fields(lines[1]); fields[0] != fmt.Sprint(pid) {
			t.Errorf("tasks ps begins with %v, want pid %d", fields, pid)
		}
		out := d.MustCtr(t, "tasks", "metrics", "--format", "json", id)
		if !json.Valid([]byte(out)) || !strings.Contains(out, fmt.Sprint(64<<20)) {
			t.Errorf("metrics without the memory limit: %s", out)
		}
		if out := d.MustCtr(t, "tasks", "metrics", id); !strings.Contains(out, id) {
			t.Errorf("metrics as a table: %s", out)
		}
		remove(t, d, id)
	})
}

// TestCtrTaskStart starts a task for a container that was made without one,
// twice: a task may be made again after it was deleted.
func TestCtrTaskStart(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("start")
		d.MustCtr(t, "containers", "create", harness.Image, id, "sh", "-c", "echo from $((40+2)); read -r _; exit 4")
		for range 2 {
			p := d.Spawn(t, d.Programs.Ctr, "tasks", "start", id)
			p.AwaitOutput(t, "from 42\n")
			p.Type(t, "\n")
			if r := p.Wait(t); r.Code != 4 || r.Stdout != "from 42\n" {
				t.Error(r)
			}
		}
		d.MustCtr(t, "containers", "rm", id)
	})
}

// TestCtrTaskDeleteForced deletes a running task.
func TestCtrTaskDeleteForced(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("force")
		start(t, d, id)
		if r := d.Ctr(t, "tasks", "delete", id); r.Code == 0 {
			t.Error("a running task was deleted without force")
		}
		d.Ctr(t, "tasks", "delete", "--force", id) // its exit code may be the task's
		if got := d.TaskStatus(t, id); got != "" {
			t.Errorf("status %s after a forced delete", got)
		}
		d.MustCtr(t, "containers", "rm", id)
	})
}
