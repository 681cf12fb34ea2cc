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

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// TestCLICopy copies files both ways, with links that lead astray in the
// container, from one that runs and from one that does not.
func TestCLICopy(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id, dir := d.ID("cp"), t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "tree", "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "tree", "sub", "f"), "from the host")
		if err := os.Symlink("sub/f", filepath.Join(dir, "tree", "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, "tree", "sub", "f"), filepath.Join(dir, "tree", "hard")); err != nil {
			t.Fatal(err)
		}
		d.MustBerth(t, "run", "-d", "--name", id, harness.Image, "sh", "-c",
			`mkdir /out; echo inside >/out/f; chown 7:8 /out/f; chmod 4711 /out/f; ln -s /etc /out/etc; ln -s /../../.. /out/up; ln -s / /abs; sleep 1000`)
		harness.Await(t, 30*time.Second, "the files in the container", func() bool {
			return d.Berth(t, "exec", id, "test", "-L", "/abs").Code == 0
		})
		check := func() {
			t.Helper()
			d.MustBerth(t, "cp", filepath.Join(dir, "tree"), id+":/tmp")
			d.MustBerth(t, "cp", filepath.Join(dir, "tree")+"/.", id+":/abs/new")
			// Through links: /abs is the container's root, whatever the host has there.
			d.MustBerth(t, "cp", filepath.Join(dir, "tree", "sub", "f"), id+":/abs/out/up/tmp/through")
			got := filepath.Join(dir, "got")
			d.MustBerth(t, "cp", id+":/out", got)
			if text, err := os.ReadFile(filepath.Join(got, "f")); err != nil || string(text) != "inside\n" {
				t.Errorf("%q, %v", text, err)
			}
			st, err := os.Stat(filepath.Join(got, "f"))
			if err != nil {
				t.Fatal(err)
			}
			if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 0 || st.Mode() != 0o711|os.ModeSetuid {
				t.Errorf("owner %d, mode %v", sys.Uid, st.Mode())
			}
			if link, err := os.Readlink(filepath.Join(got, "etc")); err != nil || link != "/etc" {
				t.Errorf("link %q, %v", link, err)
			}
			if err := os.RemoveAll(got); err != nil {
				t.Fatal(err)
			}
			d.MustBerth(t, "cp", "-a", id+":/out/f", got)
			if st, err = os.Stat(got); err != nil || st.Sys().(*syscall.Stat_t).Uid != 7 {
				t.Errorf("with its owner: %+v, %v", st, err)
			}
			if err := os.Remove(got); err != nil {
				t.Fatal(err)
			}
			tar := d.MustBerth(t, "cp", id+":/out/.", "-")
			if r := d.Exec(t, tar, "tar", "t"); !strings.Contains(r.Stdout, "etc\n") || strings.Contains(r.Stdout, "passwd") {
				t.Error(r)
			}
			if r := d.Exec(t, tar, d.Programs.Berth, "cp", "-", id+":/tmp"); r.Code != 0 {
				t.Error(r)
			}
		}
		check()
		out := d.MustBerth(t, "exec", id, "sh", "-c", "cat /tmp/tree/link /new/hard /tmp/through /tmp/f; stat -c %h:%u /tmp/tree/hard; readlink /tmp/etc")
		if out != "from the hostfrom the hostfrom the hostinside\n2:0\n/etc\n" {
			t.Errorf("in the container: %q", out)
		}
		d.MustBerth(t, "kill", id)
		d.MustBerth(t, "wait", id)
		check()
		for _, bad := range [][]string{
			{id + ":/no/such", dir}, {dir + "/nosuch", id + ":/tmp"}, {dir, dir}, {dir, id + ":/out/f/x"}, {id + ":", dir},
		} {
			checkOneLine(t, d.Berth(t, append([]string{"cp"}, bad...)...), 1)
		}
		// An archive that wants out.
		evil := filepath.Join(dir, "evil.tar")
		if r := d.Exec(t, "", "tar", "-C", dir, "-P", "-cf", evil, "--transform", "s,^tree,../../../evil,", "tree"); r.Code != 0 {
			t.Fatal(r)
		}
		r := d.Exec(t, "", "/bin/sh", "-c", d.Programs.Berth+" cp - "+id+":/tmp <"+evil)
		checkOneLine(t, r, 1, "leads out")
		d.MustBerth(t, "rm", id)
	})
}

// TestCLIUpdate changes the limits of a running container, and so of its next
// start; and looks at it by stats and top.
func TestCLIUpdate(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("limits")
		d.MustBerth(t, "run", "-d", "--name", id, "--memory", "64m", harness.Image, "sh", "-c", "sleep 1000 & wait")
		check := func() {
			t.Helper()
			pid := d.TaskPID(t, id)
			if got := strings.TrimSpace(cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max")); got != fmt.Sprint(48<<20) {
				t.Errorf("memory limit: %s", got)
			}
			if got := strings.TrimSpace(cgroupValue(t, pid, "pids", "pids.max", "pids.max")); got != "33" {
				t.Errorf("pids limit: %s", got)
			}
		}
		d.MustBerth(t, "update", "--memory", "48m", "--pids-limit", "33", id)
		check()
		var use []struct {
			ID                                           string
			MemoryBytes, MemoryLimitBytes, Pids, MaxPids uint64
		}
		if err := json.Unmarshal([]byte(d.MustBerth(t, "stats", "--json", id)), &use); err != nil {
			t.Fatal(err)
		}
		if len(use) != 1 || use[0].ID != id || use[0].MemoryBytes == 0 || use[0].MemoryLimitBytes != 48<<20 || use[0].Pids != 2 || use[0].MaxPids != 33 {
			t.Errorf("stats: %+v", use)
		}
		if out := d.MustBerth(t, "stats", "--no-stream"); !strings.Contains(out, id) || !strings.Contains(out, "48.0 MiB") {
			t.Errorf("stats of all: %q", out)
		}
		var procs []struct {
			Pid     int
			Command string
		}
		if err := json.Unmarshal([]byte(d.MustBerth(t, "top", "--json", id)), &procs); err != nil {
			t.Fatal(err)
		}
		if len(procs) != 2 || procs[0].Pid != d.TaskPID(t, id) || procs[1].Command != "sleep 1000" {
			t.Errorf("top: %+v", procs)
		}
		d.MustBerth(t, "restart", "-t", "0", id)
		check()
		checkOneLine(t, d.Berth(t, "update", id), 1, "nothing to change")
		checkOneLine(t, d.Berth(t, "update", "--memory", "64m", d.ID("none")), 1, "not found")
		checkOneLine(t, d.Berth(t, "top", d.ID("none")), 1, "not found")
		d.MustBerth(t, "rm", "-f", id)
		checkOneLine(t, d.Berth(t, "stats", "--no-stream", id), 1, "not found")
	})
}

// TestCLIAttach lets go of a shell by the detach keys and takes hold of it again.
func TestCLIAttach(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("sh")
		term := d.SpawnTerminal(t, 80, 24, d.Programs.Berth, "run", "--rm", "-it", "--name", id, harness.Image, "sh")
		term.Type(t, "X=kept; echo ready$((40+2))\n")
		term.AwaitOutput(t, "ready42")
		term.Type(t, "\x10\x11")
		if code := term.Wait(t); code != 0 {
			t.Errorf("exit code %d after the detach keys\n%q", code, term.Output())
		}
		if got := d.TaskStatus(t, id); got != "RUNNING" {
			t.Errorf("the container is %s", got)
		}
		term = d.SpawnTerminal(t, 70, 21, d.Programs.Berth, "attach", "--detach-keys", "ctrl-x,d", id)
		term.AwaitReply(t, "echo $X$((40+3)) $(stty size)", "kept43 21 70")
		term.Type(t, "\x18d")
		if code := term.Wait(t); code != 0 {
			t.Errorf("exit code %d after other keys\n%q", code, term.Output())
		}
		term = d.SpawnTerminal(t, 70, 21, d.Programs.Berth, "attach", id)
		term.AwaitReply(t, "echo $X$((40+4))", "kept44")
		term.Type(t, "exit 5\n")
		if code := term.Wait(t); code != 5 {
			t.Errorf("exit code %d, want the shell's\n%q", code, term.Output())
		}
		if out := d.MustBerth(t, "ps", "-aq"); out != "" {
			t.Errorf("--rm leaves %q", out)
		}
		// Made in the background, for a terminal that comes later.
		d.MustBerth(t, "run", "-dit", "--name", id, harness.Image, "sh")
		term = d.SpawnTerminal(t, 70, 21, d.Programs.Berth, "attach", id)
		term.AwaitReply(t, "echo $((40+5))", "45")
		term.Type(t, "\x10\x11")
		term.Wait(t)
		d.MustBerth(t, "rm", "-f", id)
		checkOneLine(t, d.Berth(t, "attach", id), 1, "not found")
	})
}

// TestCLIAttachLog stands before a container in the background: what it writes
// from now on, signals, the exit code.
func TestCLIAttachLog(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("log")
		d.MustBerth(t, "run", "-d", "--name", id, harness.Image,
			"sh", "-c", `trap "echo bye; exit 4" TERM; echo before; until [ -e /go ]; do sleep 0.05; done; while :; do echo tick; sleep 0.05; done`)
		harness.Await(t, 30*time.Second, "the first line in the log", func() bool {
			return strings.Contains(d.MustBerth(t, "logs", id), "before")
		})
		p := d.Spawn(t, d.Programs.Berth, "attach", id)
		d.MustBerth(t, "exec", id, "touch", "/go")
		p.AwaitOutput(t, "tick")
		p.Signal(t, syscall.SIGTERM)
		if r := p.Wait(t); r.Code != 4 || !strings.HasSuffix(r.Stdout, "tick\nbye\n") || strings.Contains(r.Stdout, "before") || r.Stderr != "" {
			t.Error(r)
		}
		if out := d.MustBerth(t, "wait", id); out != "4\n" {
			t.Errorf("wait: %q", out)
		}
		d.MustBerth(t, "rm", id)
		d.MustBerth(t, "run", "-d", "--null-io", "--name", id, harness.Image, "sleep", "1000")
		checkOneLine(t, d.Berth(t, "attach", id), 1, "neither to a log nor through a pipe")
		d.MustBerth(t, "rm", "-f", id)
	})
}

// TestCLIRestartPolicy lets the daemon start a container again, and the user
// end it for good.
func TestCLIRestartPolicy(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id, dir := d.ID("again"), t.TempDir()
	d.MustBerth(t, "run", "-d", "--restart", "on-failure:2", "--name", id, "-v", dir+":/d", harness.Image, "sh", "-c", "echo run >>/d/runs; exit 3")
	runs := func() int {
		data, _ := os.ReadFile(filepath.Join(dir, "runs"))
		return strings.Count(string(data), "run\n")
	}
	harness.Await(t, time.Minute, "two restarts", func() bool { return runs() == 3 })
	d.MustBerth(t, "rm", "-f", id)
	if n := runs(); n != 3 {
		t.Errorf("%d runs, want 3", n)
	}
	d.MustBerth(t, "run", "-d", "--restart", "always", "--name", id, harness.Image, "sleep", "1000")
	first := d.TaskPID(t, id)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Await(t, time.Minute, "a restart", func() bool {
		r := d.Berth(t, "top", "--json", id)
		return r.Code == 0 && strings.Contains(r.Stdout, "sleep 1000") && !strings.Contains(r.Stdout, fmt.Sprintf("%d,", first))
	})
	d.MustBerth(t, "stop", "-t", "0", id)
	d.MustBerth(t, "update", "--restart", "no", id)
	d.MustBerth(t, "rm", "-f", id)
}

// TestCLINamespaces makes, labels, lists and removes one.
func TestCLINamespaces(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		ns := d.Namespace + "x"
		d.MustBerth(t, "namespace", "create", ns)
		d.MustBerth(t, "namespace", "label", ns, "a=b")
		if out := d.MustBerth(t, "ns", "ls"); !strings.Contains(out, ns) || !strings.Contains(out, "a=b") {
			t.Errorf("%q", out)
		}
		checkOneLine(t, d.Berth(t, "namespace", "create", ns), 1, "there already")
		d.MustBerth(t, "namespace", "rm", ns)
		checkOneLine(t, d.Berth(t, "namespace", "rm", ns), 1, "not found")
	})
}

// TestCLIPushPrune sends an image to a registry and gets it back, then removes
// all that nothing uses.
func TestCLIPushPrune(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		reg := testimage.NewRegistry(t)
		name := reg.Host + "/pushed:1"
		if out := d.MustBerth(t, "push", "-q", harness.Image, name); out != name+"\n" {
			t.Errorf("%q", out)
		}
		checkOneLine(t, d.Berth(t, "push", "berth.test/none:1", name), 1, "not found")
		d.MustBerth(t, "pull", "-q", name)
		if out := d.MustBerth(t, "run", "--rm", name, "echo", "back"); out != "back\n" {
			t.Errorf("%q", out)
		}
		user, done := d.ID("user"), d.ID("done")
		d.MustBerth(t, "run", "-d", "--name", user, harness.Image, "sleep", "1000")
		d.MustBerth(t, "create", "--name", done, harness.Image, "true")
		checkOneLine(t, d.Berth(t, "image", "prune"), 1, "--force")
		if out := d.MustBerth(t, "image", "prune", "-f"); out != name+"\n" {
			t.Errorf("image prune removed %q", out)
		}
		if out := d.MustBerth(t, "system", "prune", "-f", "-a"); out != done+"\n" {
			t.Errorf("system prune removed %q", out)
		}
		d.MustBerth(t, "rm", "-f", user)
	})
}
