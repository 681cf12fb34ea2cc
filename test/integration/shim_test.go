package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// runtimes are the names that give Berth's shim.
var runtimes = []string{"io.containerd.berth.v2", "io.containerd.runc.v2"}

// TestRuntimeNames runs under both names, and all containers share one shim
// under one guard.
func TestRuntimeNames(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	for i, name := range runtimes {
		start(t, d, d.ID(fmt.Sprintf("name%d", i)), "--runtime", name)
	}
	if shims, guards := d.Shims(), d.Guards(); len(shims) != 1 || len(guards) != 1 {
		t.Errorf("shims %v and guards %v, want one of each", shims, guards)
	}
	for i := range runtimes {
		remove(t, d, d.ID(fmt.Sprintf("name%d", i)))
	}
}

// TestShimKilled kills the shim: its containers go on, and with the next one
// clients can do all that they could before.
func TestShimKilled(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id, other := d.ID("one"), d.ID("two")
	start(t, d, id)
	start(t, d, other)
	pid := d.TaskPID(t, id)
	exit := d.WaitTask(t, id)

	killed := d.KillShim(t)
	if r := d.CtrExec(t, nil, id, "sh", "-c", "echo in; exit 5"); r.Code != 5 || r.Stdout != "in\n" {
		t.Error(r)
	}
	if got := d.TaskPID(t, id); got != pid {
		t.Errorf("pid %d, was %d", got, pid)
	}
	if shims := d.Shims(); len(shims) != 1 || shims[0] == killed {
		t.Errorf("shims %v, want one that is not %d", shims, killed)
	}
	d.MustCtr(t, "tasks", "pause", id)
	d.MustCtr(t, "tasks", "resume", id)
	// The Wait that began before the death is answered all the same.
	d.MustCtr(t, "tasks", "kill", id)
	if code := exit(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	remove(t, d, id)
	remove(t, d, other)
}

// TestShimKilledExitMeanwhile lets a container end while it has no shim: the
// guard is held until the container has ended.
func TestShimKilledExitMeanwhile(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("gap")
	gate := newGate(t)
	d.MustCtr(t, "run", "--detach", "--mount", gate.mount(), harness.Image, id, "sh", "-c", gate.script(42))
	pid := d.TaskPID(t, id)
	exit := d.WaitTask(t, id)

	guards := d.Guards()
	if len(guards) != 1 {
		t.Fatalf("guards %v, want one", guards)
	}
	if err := syscall.Kill(guards[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.KillShim(t)
	gate.open(t)
	awaitEnd(t, pid)
	if err := syscall.Kill(guards[0], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	if code := exit(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	d.AwaitStatus(t, id, "STOPPED")
	remove(t, d, id)
}

// TestShimKilledForeground kills the shim under a client in the foreground,
// again and again: not a line and not the exit code is lost.
func TestShimKilledForeground(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	p := d.Spawn(t, d.Programs.Ctr, "run", "--rm", harness.Image, d.ID("front"),
		"sh", "-c", "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; read -r _; exit 42")
	for _, line := range []string{"line 20\n", "line 90\n", "line 160\n"} {
		p.AwaitOutput(t, line)
		harness.Await(t, 10*time.Second, "shim", func() bool { return len(d.Shims()) == 1 })
		d.KillShim(t)
	}
	p.AwaitOutput(t, "line 299\n")
	p.Type(t, "\n")
	if r := p.Wait(t); r.Code != 42 || r.Stdout != numbered(300) {
		t.Errorf("want exit code 42 and 300 lines: %s", r)
	}
}

// TestShimAndDaemonKilled kills the daemon and the shim together.
func TestShimAndDaemonKilled(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("both")
	start(t, d, id)
	d.Kill(t)
	d.KillShim(t)
	d.Boot(t)
	d.AwaitStatus(t, id, "RUNNING")
	exit := d.WaitTask(t, id)
	d.MustCtr(t, "tasks", "kill", id)
	if code := exit(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	remove(t, d, id)
}

// TestStockShim runs stock containerd's shim, named by its path.
func TestStockShim(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("foreign")
	shim := d.Programs.StockShim
	if r := d.CtrRun(t, []string{"--runtime", shim}, harness.Image, d.ID("front"), "sh", "-c", "echo out; exit 7"); r.Code != 7 || r.Stdout != "out\n" {
		t.Error(r)
	}

	start(t, d, id, "--runtime", shim)
	if guards := d.Guards(); len(guards) != 0 {
		t.Errorf("guards of a foreign shim: %v", guards)
	}
	exec := func() {
		t.Helper()
		if r := d.CtrExec(t, nil, id, "sh", "-c", "echo in; exit 5"); r.Code != 5 || r.Stdout != "in\n" {
			t.Error(r)
		}
	}
	exec()
	d.Kill(t)
	d.Boot(t)
	d.AwaitStatus(t, id, "RUNNING")
	exec()
	exit := d.WaitTask(t, id)
	d.MustCtr(t, "tasks", "kill", id)
	if code := exit(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	remove(t, d, id)
}

// TestStockShimKilled kills stock containerd's shim: its container goes with
// it, and everything is cleaned up.
func TestStockShimKilled(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("foreign")
	// No client is left that would remove FIFOs.
	start(t, d, id, "--null-io", "--runtime", d.Programs.StockShim)
	p, topics := watch(t, d)
	pid := d.TaskPID(t, id)
	d.KillShim(t)
	awaitEnd(t, pid)
	harness.Await(t, 20*time.Second, "exit and delete events", func() bool {
		seen := topics()
		return len(seen) >= 2 && seen[len(seen)-2] == "/tasks/exit" && seen[len(seen)-1] == "/tasks/delete"
	})
	if got := d.TaskStatus(t, id); got != "" {
		t.Errorf("the task is still listed as %s\n%s", got, p.Stdout())
	}
	d.MustCtr(t, "containers", "rm", id)
}
