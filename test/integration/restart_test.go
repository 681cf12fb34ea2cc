package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// TestRestart ends the daemon, as a service manager does and by kill -9, and
// starts it again: running containers go on, and clients can do with them what
// they could before.
func TestRestart(t *testing.T) {
	for name, end := range map[string]func(*harness.Daemon, testing.TB){
		"term": (*harness.Daemon).Term,
		"kill": (*harness.Daemon).Kill,
	} {
		t.Run(name, func(t *testing.T) {
			harness.Each(t, func(t *testing.T, d *harness.Daemon) {
				id := d.ID("survivor")
				start(t, d, id)
				pid := d.TaskPID(t, id)

				end(d, t)
				if err := syscall.Kill(pid, 0); err != nil {
					t.Fatalf("the container ended with the daemon: %v", err)
				}
				d.Boot(t)

				d.AwaitStatus(t, id, "RUNNING")
				if got := d.TaskPID(t, id); got != pid {
					t.Errorf("pid %d, was %d", got, pid)
				}
				if r := d.CtrExec(t, nil, id, "sh", "-c", "echo in; exit 5"); r.Code != 5 || r.Stdout != "in\n" {
					t.Error(r)
				}
				exit := d.WaitTask(t, id)
				d.MustCtr(t, "tasks", "kill", id)
				if code := exit(); code != 42 {
					t.Errorf("exit code %d, want 42", code)
				}
				remove(t, d, id)
			})
		})
	}
}

// TestRestartExitMeanwhile lets a container end while there is no daemon. Not
// for stock containerd, which deletes such a task and forgets its exit code.
func TestRestartExitMeanwhile(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("ends")
	gate := newGate(t)
	d.MustCtr(t, "run", "--detach", "--mount", gate.mount(), harness.Image, id, "sh", "-c", gate.script(42))
	pid := d.TaskPID(t, id)

	d.Kill(t)
	gate.open(t)
	awaitEnd(t, pid)
	d.Boot(t)

	d.AwaitStatus(t, id, "STOPPED")
	if code := d.WaitTask(t, id)(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	remove(t, d, id)
}

// TestRestartStopped keeps a task that had ended before, with its exit code.
// Not for stock containerd, for the same reason.
func TestRestartStopped(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("ended")
	d.MustCtr(t, "run", "--detach", harness.Image, id, "sh", "-c", "exit 42")
	d.AwaitStatus(t, id, "STOPPED")
	d.Kill(t)
	d.Boot(t)
	d.AwaitStatus(t, id, "STOPPED")
	if code := d.WaitTask(t, id)(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	remove(t, d, id)
}

// TestRestartMany takes up many containers, with none lost and none changed.
func TestRestartMany(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const n = 12
		pids := map[string]int{}
		for i := range n {
			id := d.ID(fmt.Sprintf("many%d", i))
			d.MustCtr(t, "run", "--detach", harness.Image, id, "sleep", "1000")
			pids[id] = d.TaskPID(t, id)
		}
		d.Kill(t)
		d.Boot(t)
		for id, pid := range pids {
			d.AwaitStatus(t, id, "RUNNING")
			if got := d.TaskPID(t, id); got != pid {
				t.Errorf("%s: pid %d, was %d", id, got, pid)
			}
			remove(t, d, id)
		}
	})
}

// TestRestartOutput restarts the daemon under a container that writes all the
// time: it is never blocked, and its log misses nothing.
func TestRestartOutput(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("writer")
		log := filepath.Join(t.TempDir(), "log")
		d.MustCtr(t, "run", "--detach", "--log-uri", "file://"+log, harness.Image, id,
			"sh", "-c", "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 42")
		awaitLines(t, log, 10)
		d.Kill(t)
		before := countLines(t, log)
		awaitLines(t, log, before+50) // with no daemon there
		d.Boot(t)
		if code := d.WaitTask(t, id)(); code != 42 {
			t.Errorf("exit code %d, want 42", code)
		}
		awaitLines(t, log, 400)
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if want := numbered(400); string(b) != want {
			t.Errorf("the log has %d bytes, want %d", len(b), len(want))
		}
		remove(t, d, id)
	})
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

func countLines(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

func awaitLines(t *testing.T, path string, n int) {
	t.Helper()
	harness.Await(t, 30*time.Second, fmt.Sprintf("%d lines of output", n), func() bool { return countLines(t, path) >= n })
}

// gate is a file that a container waits for.
type gate struct{ dir string }

func newGate(t *testing.T) gate {
	t.Helper()
	return gate{t.TempDir()}
}

// mount is the option that puts the gate into a container.
func (g gate) mount() string { return "type=bind,src=" + g.dir + ",dst=/gate,options=rbind" }

// wait is a shell command that ends once the gate is open.
func (g gate) wait() string { return "while [ ! -e /gate/open ]; do sleep 0.02; done" }

// script is a shell script that ends with the code once the gate is open.
func (g gate) script(code int) string { return fmt.Sprintf("%s; exit %d", g.wait(), code) }

func (g gate) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, "open"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// awaitEnd waits until a process has ended, reaped or not.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	harness.Await(t, 10*time.Second, "end of the container's process", func() bool { return harness.Ended(pid) })
}
