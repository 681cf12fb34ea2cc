package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/fakeoci/fault"
	"github.com/berthd/berth/test/harness"
)

func TestMain(m *testing.M) { os.Exit(faketest.Run(m)) }

// TestCLICheckpoint saves containers of a runtime that only says it does, as
// images and into a directory, and restores them. What CRIU does is tested
// where there is one.
func TestCLICheckpoint(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		root := filepath.Join(t.TempDir(), "runc")
		// The stock shim puts the namespace behind it.
		calls := faketest.Calls
		seen := func(want ...string) bool {
			for _, dir := range []string{root, filepath.Join(root, d.Namespace)} {
				if slices.ContainsFunc(calls(t, dir), func(args []string) bool {
					return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(args, w) })
				}) {
					return true
				}
			}
			return false
		}
		id, again, third := d.ID("a"), d.ID("b"), d.ID("c")
		d.MustBerth(t, "run", "-d", "--name", id, "--seccomp=false", "--runc-binary", faketest.Binary(t), "--runc-root", root,
			harness.Image, "/bin/sleep", "1000")
		if out := d.MustBerth(t, "checkpoint", "--rw", "--tcp-established", id, "berth.test/saved:1"); out != "berth.test/saved:1\n" {
			t.Errorf("checkpoint: %q", out)
		}
		if !seen("checkpoint", "--tcp-established", "--file-locks", "--leave-running") {
			t.Error("the runtime was not told of the options")
		}
		if got := d.TaskStatus(t, id); got != "RUNNING" {
			t.Errorf("after the checkpoint the container is %s", got)
		}
		checkOneLine(t, d.Berth(t, "checkpoint", id, "berth.test/saved:1"), 1, "there already")
		d.MustBerth(t, "restore", "--live", "--rw", again, "berth.test/saved:1")
		if got := d.TaskStatus(t, again); got != "RUNNING" || !seen("restore", again) {
			t.Errorf("the restored container is %s", got)
		}
		if out := d.MustBerth(t, "inspect", "--format", "{{.image}} {{.spec.linux.cgroupsPath}}", again); out != harness.Image+" /"+d.Namespace+"/"+again+"\n" {
			t.Errorf("the restored container has %q", out)
		}
		checkOneLine(t, d.Berth(t, "restore", "--live", again, "berth.test/saved:1"), 1, "taken")
		// Stock ctr and berth take each other's.
		d.MustCtr(t, "containers", "restore", "--live", "--rw", third, "berth.test/saved:1")
		d.MustBerth(t, "rm", "-f", third)
		d.MustCtr(t, "containers", "checkpoint", "--rw", "--task", again, "berth.test/ctr:1")
		d.MustBerth(t, "restore", "--live", "--rw", third, "berth.test/ctr:1")
		d.MustBerth(t, "rm", "-f", again, third)

		dump, pidFile := filepath.Join(t.TempDir(), "dump"), filepath.Join(t.TempDir(), "pid")
		if err := os.Mkdir(dump, 0o700); err != nil {
			t.Fatal(err)
		}
		d.MustBerth(t, "checkpoint", "--exit", "--image-path", dump, id)
		d.MustBerth(t, "wait", id)
		d.MustBerth(t, "restore", "--image-path", dump, "--pid-file", pidFile, id)
		pid, err := os.ReadFile(pidFile)
		if out := d.MustBerth(t, "inspect", "--format", "{{.pid}}", id); err != nil || strings.TrimSpace(out) != string(pid) {
			t.Errorf("pid file %q, %v; pid %q", pid, err, out)
		}

		d.MustBerth(t, "checkpoint", "--task=false", "--image", "--rw", id, "berth.test/saved:2")
		checkOneLine(t, d.Berth(t, "restore", "--live", again, "berth.test/saved:2"), 1, "holds no processes")
		d.MustBerth(t, "restore", "--rw", again, "berth.test/saved:2")
		d.MustBerth(t, "rm", "-f", again)

		// What fails leaves the container running, and nothing else.
		for _, dir := range []string{root, filepath.Join(root, d.Namespace)} {
			if _, err := os.Stat(dir); err == nil {
				faketest.Order(t, dir,
					fault.Rule{Op: "checkpoint", Action: fault.Exit, Code: 1, Message: "criu failed: as ordered"},
					fault.Rule{Op: "restore", Action: fault.Exit, Code: 1, Message: "criu failed: as ordered"})
			}
		}
		checkOneLine(t, d.Berth(t, "checkpoint", "--rw", id, "berth.test/saved:3"), 1, "criu failed")
		if got := d.TaskStatus(t, id); got != "RUNNING" {
			t.Errorf("after a checkpoint that failed the container is %s", got)
		}
		checkOneLine(t, d.Berth(t, "restore", "--live", again, "berth.test/saved:1"), 1, "criu failed")
		checkOneLine(t, d.Berth(t, "restore", again, harness.Image), 1, "no checkpoint")
		d.MustBerth(t, "kill", id)
		d.MustBerth(t, "wait", id)
		checkOneLine(t, d.Berth(t, "checkpoint", id), 1, "does not run")
		if out := d.MustBerth(t, "ps", "-aq"); out != id+"\n" {
			t.Errorf("left: %q", out)
		}
		d.MustBerth(t, "rm", id)
		d.MustBerth(t, "rmi", "--sync", "berth.test/saved:1", "berth.test/saved:2", "berth.test/ctr:1")
		if d.Kind == harness.Stock { // it never removes what it unpacked a checkpoint to
			left, _ := filepath.Glob(filepath.Join(d.Dir, "ctrd-checkpoint*"))
			for _, dir := range left {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
