package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

func ownHarness(t *testing.T) *harness {
	t.Helper()
	shim := ownShimBinary(t)
	return newHarness(t, func(c *Config) { c.ShimBinary = shim })
}

func TestSuiteOverBerthsShim(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Harness { return ownHarness(t) })
}

// pids of the group's processes, as they write them themselves.
func (h *harness) pidOf(name string) identity {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, "state", groupSubdir, "*", "*", name))
	if err != nil || len(files) != 1 {
		h.t.Fatalf("%s: %v, %v; want one", name, files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		h.t.Fatal(err)
	}
	id, ok := parseIdentity(data)
	if !ok {
		h.t.Fatalf("%s holds %q", name, data)
	}
	return id
}

func (h *harness) kill(name string) {
	h.t.Helper()
	id := h.pidOf(name)
	fd, err := unix.PidfdOpen(id.pid, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := id.kill(); err != nil {
		h.t.Fatal(err)
	}
	// With all its threads, of which each holds its sockets open.
	h.poll(name+" to end", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}

// gate makes a FIFO in the container's root file system, read only to it; the
// container waits at its end until open is called.
func (h *harness) gate(name string) (script string, open func()) {
	h.t.Helper()
	h.Config(h.t, name, "") // makes the root file system
	path := filepath.Join(h.rootfs, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		h.t.Fatal(err)
	}
	return "read x < /" + name, func() {
		h.t.Helper()
		if err := os.WriteFile(path, []byte("go\n"), 0); err != nil {
			h.t.Error(err)
		}
	}
}

func TestOwnTasksShareOneShim(t *testing.T) {
	h := ownHarness(t)
	a, b := h.run("a", tasktest.Forever), h.run("b", tasktest.Forever)
	if a.(*Task).group != b.(*Task).group {
		t.Error("two tasks of a namespace have two groups")
	}
	list, err := h.sup.List(h.ctx(), h.Namespace())
	if err != nil || len(list) != 2 || list[0] != a || list[1] != b {
		t.Errorf("list: %v, %v", list, err)
	}
	if list, err := h.sup.List(h.ctx(), "other"); err != nil || len(list) != 0 {
		t.Errorf("list of another namespace: %v, %v", list, err)
	}
	dir := filepath.Join(h.dir, "state", bundle.Subdir, h.Namespace(), "a")
	for _, name := range []string{"shim-binary-path", "bootstrap.json", "group", "config.json", "work"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := h.sup.Create(h.ctx(), h.id("a"), h.Config(t, "a", "true")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
}

func TestOwnGroups(t *testing.T) {
	h := ownHarness(t)
	for _, c := range []struct {
		annotations map[string]string
		sharing     string
		want        string
	}{
		{nil, SharingNamespace, "namespace"},
		{nil, SharingContainer, "container.id"},
		{map[string]string{"io.kubernetes.cri.sandbox-id": "pod"}, SharingContainer, "group.pod"},
		{map[string]string{"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}, SharingNamespace, "group.g"},
	} {
		h.sup.cfg.Sharing = c.sharing
		if got := h.sup.groupKey("id", c.annotations); got != c.want {
			t.Errorf("key of %v, %s is %q, want %q", c.annotations, c.sharing, got, c.want)
		}
	}
	h.sup.cfg.Sharing = SharingContainer
	a, b := h.run("a", tasktest.Forever), h.run("b", tasktest.Forever)
	if a.(*Task).group == b.(*Task).group {
		t.Error("two tasks have one group, though each was to get its own")
	}
}

// A group ends with its last task; the next task starts it again, also in the
// moment in which it ends.
func TestOwnGroupComesAndGoes(t *testing.T) {
	h := ownHarness(t)
	h.close()
	h.cfg.Linger = 30 * time.Millisecond
	h.open()
	for i := range 15 {
		c := h.run(fmt.Sprintf("c%d", i), "exit 3")
		h.wait(c, 3)
		h.del(c, 3)
		// Each round meets the shim at another moment of its end.
		time.Sleep(h.cfg.Linger + time.Duration(2*i-5)*time.Millisecond)
	}
	h.poll("the group to end", func() bool { return len(h.left()) == 0 })
}

func TestOwnRestartOfTheDaemon(t *testing.T) {
	h := ownHarness(t)
	wait42, open42 := h.gate("gate")
	h.run("runs", wait42+"; exit 42")
	h.create("created", "exit 5")
	h.wait(h.run("stopped", "exit 7"), 7)
	e, err := h.get("runs").Exec(h.ctx(), "e", h.Exec(t, "exit 9"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(h.ctx()); err != nil {
		t.Fatal(err)
	}
	h.wait(e, 9)
	guard := h.pidOf("guard.pid")

	h.reopen()

	if h.pidOf("guard.pid") != guard {
		t.Error("the guard was replaced")
	}
	for name, want := range map[string]task.Status{"runs": task.Running, "created": task.Created, "stopped": task.Stopped} {
		if st, err := h.get(name).State(h.ctx()); err != nil || st.Status != want || st.Stale {
			t.Errorf("%s: %+v, %v; want %s", name, st, err, want)
		}
	}
	e, err = h.get("runs").Process(h.ctx(), "e")
	if err != nil {
		t.Fatal(err)
	}
	h.del(e, 9)
	if _, err := h.get("runs").Process(h.ctx(), "e"); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted exec: %v, want NotFound", err)
	}
	h.del(h.get("stopped"), 7)
	if _, err := h.get("created").Start(h.ctx()); err != nil {
		t.Error(err)
	}
	h.wait(h.get("created"), 5)
	open42()
	h.wait(h.get("runs"), 42)
	h.del(h.get("runs"), 42)
	if _, err := h.sup.Get(h.ctx(), h.id("runs")); !errdefs.IsNotFound(err) {
		t.Errorf("get of a deleted task: %v, want NotFound", err)
	}
}

// The shim is killed; its container ends in the gap; whoever waited before and
// whoever waits afterwards gets its status.
func TestOwnShimDies(t *testing.T) {
	h := ownHarness(t)
	wait42, open42 := h.gate("gate")
	c := h.run("c", wait42+"; exit 42")
	other := h.run("other", tasktest.Forever)
	waited := make(chan task.Exit, 1)
	go func() {
		exit, err := c.Wait(h.ctx())
		if err != nil {
			t.Errorf("wait across the death of the shim: %v", err)
		}
		waited <- exit
	}()
	h.kill("shim.pid")
	open42()
	if exit := <-waited; exit.Status != 42 {
		t.Errorf("exit in the gap: %+v, want 42", exit)
	}
	if st, err := other.State(h.ctx()); err != nil || st.Status != task.Running || st.Stale {
		t.Errorf("the other task: %+v, %v", st, err)
	}
	h.del(c, 42)
	if n := len(h.events.of(task.EventExit, "c")); n > 1 {
		t.Errorf("%d exit events", n)
	}
}

// Guard and shim are killed, while the daemon lives, and while it does not.
func TestOwnGuardAndShimDie(t *testing.T) {
	for name, down := range map[string]bool{"daemon lives": false, "daemon is down": true} {
		t.Run(name, func(t *testing.T) {
			h := ownHarness(t)
			h.run("c", tasktest.Forever)
			if down {
				h.close()
			}
			h.kill("guard.pid")
			h.kill("shim.pid")
			if down {
				h.open()
			}
			c := h.get("c")
			h.poll("the new shim to adopt the task", func() bool {
				st, err := c.State(h.ctx())
				return err == nil && !st.Stale && st.Status == task.Running
			})
			if err := c.Kill(h.ctx(), 9, false); err != nil {
				t.Fatal(err)
			}
			exit, err := c.Wait(h.ctx())
			if err != nil {
				t.Fatal(err)
			}
			h.del(c, exit.Status)
		})
	}
}

// A shim that hangs is not dead: State answers from memory and says so, other
// calls fail in time, and all is well when the shim goes on.
func TestOwnShimHangs(t *testing.T) {
	h := ownHarness(t)
	h.close()
	h.cfg.Timeouts = Timeouts{State: 200 * time.Millisecond, Signal: 200 * time.Millisecond}
	h.open()
	c := h.run("c", tasktest.Forever)
	resume := h.stop(h.pidOf("shim.pid"))
	st, err := c.State(h.ctx())
	if err != nil || !st.Stale || st.Status != task.Running {
		t.Errorf("state: %+v, %v; want running, stale", st, err)
	}
	begin := time.Now()
	for range 10 {
		if st, err := c.State(h.ctx()); err != nil || !st.Stale {
			t.Errorf("state: %+v, %v; want stale", st, err)
		}
	}
	if d := time.Since(begin); d > 1500*time.Millisecond {
		t.Errorf("ten states of a hung shim took %v", d)
	}
	if err := c.Kill(h.ctx(), 9, false); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("kill: %v, want DeadlineExceeded", err)
	}
	resume()
	// The kill was read by the shim meanwhile, with a deadline that is over; it
	// may or may not have been done.
	h.poll("the shim to answer", func() bool {
		st, err := c.State(h.ctx())
		return err == nil && !st.Stale
	})
	if err := c.Kill(h.ctx(), 9, false); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	h.wait(c, 137)
	h.del(c, 137)
}

// What a daemon that was killed has left of creates that were under way.
func TestOwnHalfMadeTasks(t *testing.T) {
	h := ownHarness(t)
	h.run("good", tasktest.Forever)
	g := h.get("good").(*Task).group.id.name
	h.close()
	store, err := bundle.Open(h.cfg.State, h.cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, name := range []string{"empty-handed", "known-to-nobody", "corrupt"} {
		b, err := store.Create(h.id(name), h.spec(t, name, "true"), 0)
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case "known-to-nobody":
			err = b.WriteFile(bundle.GroupFile, []byte(g), 0o600)
		case "corrupt":
			err = b.WriteFile(bundle.GroupFile, []byte("../../../etc"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(h.cfg.State, bundle.Subdir, h.Namespace(), "nothing"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(h.cfg.Root, bundle.Subdir, h.Namespace(), "work-only"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.open()
	list, err := h.sup.List(h.ctx(), h.Namespace())
	if err != nil || len(list) != 2 || list[0].ID().Container != "corrupt" || list[1].ID().Container != "good" {
		t.Errorf("list: %v, %v; want corrupt, good", list, err)
	}
	// The corrupt one is shown, so that it can be deleted.
	bad := h.get("corrupt")
	if st, err := bad.State(h.ctx()); err != nil || !st.Stale {
		t.Errorf("state of the corrupt one: %+v, %v", st, err)
	}
	if _, err := bad.Wait(h.ctx()); !errdefs.IsUnavailable(err) {
		t.Errorf("wait for the corrupt one: %v, want Unavailable", err)
	}
	h.del(bad, 255)
	if left, err := filepath.Glob(filepath.Join(h.cfg.Root, bundle.Subdir, h.Namespace(), "*")); err != nil || len(left) != 1 {
		t.Errorf("work directories: %v, %v; want one", left, err)
	}
}

func TestOwnBundlesOfAnEarlierBoot(t *testing.T) {
	h := ownHarness(t)
	store, err := bundle.Open(h.cfg.State, h.cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	b, err := store.Create(h.id("old"), h.spec(t, "old", "true"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"boot-id": "another", bundle.GroupFile: newGroupID(h.Namespace(), "namespace").name} {
		if err := b.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.reopen()
	if list, err := h.sup.List(h.ctx(), h.Namespace()); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v; want none", list, err)
	}
}

// A caller that leaves takes the task along.
func TestOwnCreateAbandoned(t *testing.T) {
	h := ownHarness(t)
	for i := range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*10*time.Millisecond)
		c, err := h.sup.Create(ctx, h.id("c"), h.Config(t, "c", tasktest.Forever))
		cancel()
		if err == nil {
			h.del(c, 137)
			continue
		}
		if !errdefs.IsDeadlineExceeded(err) {
			t.Errorf("create with too little time: %v", err)
		}
		h.poll("the id to be free", func() bool {
			h.sup.mu.Lock()
			defer h.sup.mu.Unlock()
			return len(h.sup.tasks) == 0
		})
	}
}

func TestOwnGuardCannotStart(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.ShimBinary = "/bin/false" })
	begin := time.Now()
	for range 3 {
		if _, err := h.sup.Create(h.ctx(), h.id("c"), h.Config(t, "c", "true")); !errdefs.IsUnavailable(err) {
			t.Errorf("create: %v, want Unavailable", err)
		}
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("three refusals took %v", d)
	}
	h.poll("nothing to be left", func() bool { return len(h.left()) == 0 })
}

// A shim that leaves as soon as it can is met at every moment of its end by
// the next create, which finds one that serves it. What was not begun is not
// failed.
func TestOwnCreatesMeetLeavingShims(t *testing.T) {
	h := ownHarness(t)
	h.close()
	h.cfg.Linger = time.Millisecond
	h.open()
	for i := range 25 {
		id := fmt.Sprintf("c%d", i%3)
		c, err := h.sup.Create(h.ctx(), h.id(id), h.Config(t, id, "true"))
		if err != nil {
			t.Fatalf("create %d: %v", i, err)
		}
		if _, err := c.Delete(h.ctx()); err != nil {
			t.Fatalf("delete %d: %v", i, err)
		}
		time.Sleep(time.Duration(i) * 200 * time.Microsecond)
	}
	h.poll("the group to end", func() bool { return len(h.left()) == 0 })
}

// After deaths in quick succession the guard waits before it starts the next
// shim. Calls that come meanwhile wait too, and are done.
func TestOwnCallsWaitForTheGuard(t *testing.T) {
	h := ownHarness(t)
	c := h.run("c", tasktest.Forever)
	if _, err := c.Exec(h.ctx(), "e", h.Exec(t, "exit 4")); err != nil {
		t.Fatal(err)
	}
	for range 6 { // the pause is 320 ms then, and twice as long each time
		h.poll("the shim", func() bool { return h.pidOf("shim.pid").alive() })
		h.kill("shim.pid")
	}
	exec, err := c.Process(h.ctx(), "e")
	if err == nil {
		_, err = exec.Start(h.ctx())
	}
	if err != nil {
		t.Fatalf("start of an exec: %v", err)
	}
	if exit, err := exec.Wait(h.ctx()); err != nil || exit.Status != 4 {
		t.Errorf("%+v, %v", exit, err)
	}
	h.kill("shim.pid")
	if _, err := h.sup.Create(h.ctx(), h.id("other"), h.Config(t, "other", "true")); err != nil {
		t.Errorf("create: %v", err)
	}
	h.poll("the shim", func() bool { return h.pidOf("shim.pid").alive() })
	h.kill("shim.pid")
	if err := c.Kill(h.ctx(), unix.SIGKILL, false); err != nil {
		t.Errorf("kill: %v", err)
	}
	h.wait(c, 137)
	h.del(c, 137)
}
