package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// TestShimUnderStock puts Berth's shim under stock containerd, by its path, by the
// name of its runtime, and in the place of stock's own shim: what clients do with
// that one works, a restart included.
func TestShimUnderStock(t *testing.T) {
	t.Parallel()
	testDropIn(t, harness.Config{Kind: harness.Stock, OwnShim: true}, harness.Shim(t), "io.containerd.berth.v2", "io.containerd.runc.v2")
}

// TestShimUnderContainerd16 is the same under Debian's containerd, which knows
// version 2 of the shim's service and no bootstrap parameters.
func TestShimUnderContainerd16(t *testing.T) {
	t.Parallel()
	testDropIn(t, harness.Config{Kind: harness.Stock, Old: true, OwnShim: true}, harness.Shim(t), "io.containerd.berth.v2", "io.containerd.runc.v2")
}

func testDropIn(t *testing.T, config harness.Config, runtimes ...string) {
	t.Helper()
	d := harness.Start(t, config)
	shim := harness.Shim(t)
	for _, runtime := range runtimes {
		r := d.CtrRun(t, []string{"--runtime", runtime}, harness.Image, d.ID("front"), "sh", "-c", "echo out; echo err >&2; exit 7")
		if r.Code != 7 || r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Error(r)
		}
		id := d.ID("dropin")
		start(t, d, id, "--runtime", runtime)
		pid := d.TaskPID(t, id)
		// The one of the container before may be about to end.
		harness.Await(t, 30*time.Second, "one shim", func() bool { return len(d.Shims()) == 1 })
		if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", d.Shims()[0])); err != nil || program != shim {
			t.Errorf("%s is served by %s, %v", runtime, program, err)
		}
		if guards := d.Guards(); len(guards) != 0 {
			t.Errorf("guards %v under a daemon that is not Berth's", guards)
		}
		exec := func() {
			t.Helper()
			if r := d.CtrExec(t, nil, id, "sh", "-c", "echo in; exit 5"); r.Code != 5 || r.Stdout != "in\n" {
				t.Error(r)
			}
		}
		exec()
		d.MustCtr(t, "tasks", "pause", id)
		d.MustCtr(t, "tasks", "resume", id)
		d.MustCtr(t, "tasks", "metrics", id)
		d.Kill(t)
		d.Boot(t)
		d.AwaitStatus(t, id, "RUNNING")
		if got := d.TaskPID(t, id); got != pid {
			t.Errorf("pid %d, was %d", got, pid)
		}
		exec()
		exit := d.WaitTask(t, id)
		d.MustCtr(t, "tasks", "kill", id)
		if code := exit(); code != 42 {
			t.Errorf("exit code %d, want 42", code)
		}
		remove(t, d, id)
	}
}

// TestShimUnderStockTerminal is a shell on a terminal of Berth's shim.
func TestShimUnderStockTerminal(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{Kind: harness.Stock})
	term := d.SpawnTerminal(t, 91, 33, d.Programs.Ctr, "run", "--rm", "--tty", "--runtime", harness.Shim(t), harness.Image, d.ID("tty"), "sh")
	term.AwaitReply(t, "stty size", "33 91")
	term.Type(t, "exit 9\n")
	if code := term.Wait(t); code != 9 {
		t.Errorf("exit code %d, want 9\n%q", code, term.Output())
	}
}

// TestShimUnderStockKilled kills it: under stock containerd its container goes
// with it, and nothing is left.
func TestShimUnderStockKilled(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{Kind: harness.Stock})
	id := d.ID("killed")
	// No client is left that would remove FIFOs.
	start(t, d, id, "--null-io", "--runtime", harness.Shim(t))
	pid := d.TaskPID(t, id)
	d.KillShim(t)
	awaitEnd(t, pid)
	d.AwaitStatus(t, id, "")
	d.MustCtr(t, "containers", "rm", id)
}

// TestShimUnderStockLogs has Berth's shim write a log, and run a logging
// program, for stock containerd.
func TestShimUnderStockLogs(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{Kind: harness.Stock})
	program, to := loggerProgram(t, "binary", storing)
	path := filepath.Join(t.TempDir(), "log")
	for name, uri := range map[string]string{"program": program, "log": "json-file://" + path + "?max-size=1000000&max-file=2"} {
		id := d.ID(name)
		d.MustCtr(t, "run", "--detach", "--runtime", harness.Shim(t), "--log-uri", uri, harness.Image, id, "sh", "-c", "echo out; exit 42")
		if code := d.WaitTask(t, id)(); code != 42 {
			t.Errorf("exit code %d, want 42", code)
		}
		remove(t, d, id)
	}
	awaitFile(t, to, "out\n")
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(b), `{"log":"out\n","stream":"stdout","time":"20`) {
		t.Errorf("log: %q, %v", b, err)
	}
}
