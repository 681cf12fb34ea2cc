package supervisor

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

func stockHarness(t *testing.T) *harness {
	t.Helper()
	shim := stockShimBinary(t)
	h := newHarness(t, nil)
	h.runtime = shim
	return h
}

func TestSuiteOverTheStockShim(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Harness { return stockHarness(t) })
}

// shimOf is the process of a foreign shim.
func (h *harness) shimOf(name string) identity {
	h.t.Helper()
	f := h.get(name).(*Task).foreign
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shim.pid == 0 {
		h.t.Fatal("the shim's pid is not known")
	}
	return f.shim
}

func TestStockBundle(t *testing.T) {
	h := stockHarness(t)
	h.run("c", tasktest.Forever)
	dir := filepath.Join(h.cfg.State, bundle.Subdir, h.Namespace(), "c")
	if got, err := os.ReadFile(filepath.Join(dir, "shim-binary-path")); err != nil || string(got) != h.runtime {
		t.Errorf("shim-binary-path is %q, %v", got, err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "log")); err != nil || info.Mode() != os.ModeNamedPipe|0o700 {
		t.Errorf("log is %v, %v", info.Mode(), err)
	}
	b, err := h.sup.bundles.Load(h.id("c"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := readBootstrap(b); err != nil || r.Version != 3 || r.Protocol != "ttrpc" {
		t.Errorf("bootstrap.json gives %v, %v", r, err)
	}
}

func TestStockRestartOfTheDaemon(t *testing.T) {
	h := stockHarness(t)
	wait42, open42 := h.gate("gate")
	h.run("runs", wait42+"; exit 42")
	h.create("created", "exit 5")
	h.wait(h.run("stopped", "exit 7"), 7)
	h.reopen()
	// A stopped task is kept until it is deleted.
	for name, want := range map[string]task.Status{"runs": task.Running, "created": task.Created, "stopped": task.Stopped} {
		if st, err := h.get(name).State(h.ctx()); err != nil || st.Status != want || st.Stale {
			t.Errorf("%s: %+v, %v; want %s", name, st, err, want)
		}
	}
	h.del(h.get("stopped"), 7)
	e, err := h.get("runs").Exec(h.ctx(), "e", h.Exec(t, "exit 9"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(h.ctx()); err != nil {
		t.Fatal(err)
	}
	h.wait(e, 9)
	h.del(e, 9)
	if _, err := h.get("created").Start(h.ctx()); err != nil {
		t.Error(err)
	}
	h.wait(h.get("created"), 5)
	open42()
	h.wait(h.get("runs"), 42)
	h.del(h.get("runs"), 42)
}

// once waits for an event and checks that there is no second.
func (h *harness) once(kind task.EventKind, container string, status uint32) {
	h.t.Helper()
	h.poll(kind.Topic(), func() bool { return len(h.events.of(kind, container)) > 0 })
	if got := h.events.of(kind, container); len(got) != 1 || got[0].Exit.Status != status {
		h.t.Errorf("%s: %+v, want one with status %d", kind.Topic(), got, status)
	}
}

func TestStockShimDies(t *testing.T) {
	h := stockHarness(t)
	c := h.run("c", tasktest.Forever)
	st, err := c.State(h.ctx())
	if err != nil {
		t.Fatal(err)
	}
	container, ok := identify(int(st.Pid))
	if !ok {
		t.Fatal("the container does not run")
	}
	waited := make(chan error, 1)
	var exit task.Exit
	go func() {
		var err error
		exit, err = c.Wait(h.ctx())
		waited <- err
	}()
	if err := h.shimOf("c").kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil || exit.Status != 137 {
		t.Errorf("wait: %+v, %v; want 137", exit, err)
	}
	h.once(task.EventExit, "c", 137)
	h.once(task.EventDelete, "c", 137)
	h.poll("the task to be gone", func() bool {
		_, err := h.sup.Get(h.ctx(), h.id("c"))
		return errdefs.IsNotFound(err)
	})
	if container.alive() {
		t.Error("the container lives on without a shim")
	}
	c = h.run("c", "exit 3") // the id is free
	h.wait(c, 3)
	h.del(c, 3)
}

func TestStockShimDiesWhileTheDaemonIsDown(t *testing.T) {
	h := stockHarness(t)
	h.run("dies", tasktest.Forever)
	h.run("lives", tasktest.Forever)
	shim := h.shimOf("dies")
	h.close()
	if err := shim.kill(); err != nil {
		t.Fatal(err)
	}
	h.poll("the shim to end", func() bool { return !shim.alive() })
	h.open()
	h.once(task.EventExit, "dies", 137)
	h.once(task.EventDelete, "dies", 137)
	if _, err := h.sup.Get(h.ctx(), h.id("dies")); !errdefs.IsNotFound(err) {
		t.Errorf("get of the task without a shim: %v, want NotFound", err)
	}
	if st, err := h.get("lives").State(h.ctx()); err != nil || st.Status != task.Running {
		t.Errorf("the other task: %+v, %v", st, err)
	}
}

// Slow is not dead, neither for a daemon that runs nor for one that starts:
// and the other tasks do not wait.
func TestStockShimHangs(t *testing.T) {
	h := stockHarness(t)
	h.close()
	h.cfg.Timeouts = Timeouts{State: 100 * time.Millisecond, Load: 300 * time.Millisecond, Shutdown: 100 * time.Millisecond}
	h.open()
	c := h.run("hangs", tasktest.Forever)
	h.run("well", tasktest.Forever)
	resume := h.stop(h.shimOf("hangs"))
	if st, err := c.State(h.ctx()); err != nil || !st.Stale || st.Status != task.Running {
		t.Errorf("state: %+v, %v; want running, stale", st, err)
	}
	h.reopen()
	if st, err := h.get("well").State(h.ctx()); err != nil || st.Stale || st.Status != task.Running {
		t.Errorf("the other task: %+v, %v", st, err)
	}
	c = h.get("hangs")
	if st, err := c.State(h.ctx()); err != nil || !st.Stale {
		t.Errorf("state: %+v, %v; want stale", st, err)
	}
	if got := h.events.of(task.EventExit, "hangs"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	resume()
	h.poll("the shim to answer", func() bool {
		st, err := c.State(h.ctx())
		return err == nil && !st.Stale && st.Status == task.Running
	})
}

// The stock shim panics when an exec whose start failed is started again.
func TestStockExecIsNotStartedTwice(t *testing.T) {
	h := stockHarness(t)
	c := h.run("c", tasktest.Forever)
	e, err := c.Exec(h.ctx(), "e", task.ExecConfig{Spec: []byte(`{"args":["/does/not/exist"],"cwd":"/"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(h.ctx()); err == nil {
		t.Fatal("start of a program that does not exist succeeded")
	}
	if _, err := e.Start(h.ctx()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v, want FailedPrecondition", err)
	}
	exit, err := e.Wait(h.ctx())
	if err != nil || exit.Status != 255 || exit.Reason == "" {
		t.Errorf("wait: %+v, %v; want 255 and why", exit, err)
	}
	if st, err := e.State(h.ctx()); err != nil || st.Status != task.Stopped {
		t.Errorf("state: %+v, %v; want stopped", st, err)
	}
	h.del(e, 255)
	if st, err := c.State(h.ctx()); err != nil || st.Status != task.Running {
		t.Errorf("the container: %+v, %v", st, err)
	}
}

func TestStockInfo(t *testing.T) {
	h := stockHarness(t)
	req := &types.RuntimeRequest{RuntimePath: h.runtime}
	info, err := h.sup.PluginInfo(h.ctx(), req)
	if err != nil || info.Name != "io.containerd.runc.v2" {
		t.Fatalf("%v, %v", info, err)
	}
	begin := time.Now()
	for range 100 {
		if _, err := h.sup.PluginInfo(h.ctx(), req); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("a hundred questions took %v: the answer is not kept", d)
	}
	if _, err := h.sup.PluginInfo(h.ctx(), &types.RuntimeRequest{RuntimePath: "/does/not/exist"}); !errdefs.IsNotFound(err) {
		t.Errorf("info of a missing shim: %v, want NotFound", err)
	}
}

// Two tasks of one group have one process of the stock shim.
func TestStockGroup(t *testing.T) {
	h := stockHarness(t)
	h.annotations = map[string]string{"io.containerd.runc.v2.group": "pod"}
	a, b := h.run("a", tasktest.Forever), h.run("b", tasktest.Forever)
	if h.shimOf("a") != h.shimOf("b") {
		t.Error("the tasks have two shims")
	}
	if err := a.Kill(h.ctx(), 9, true); err != nil {
		t.Fatal(err)
	}
	h.wait(a, 137)
	h.del(a, 137)
	if st, err := b.State(h.ctx()); err != nil || st.Status != task.Running {
		t.Errorf("the other task: %+v, %v", st, err)
	}
	shim := h.shimOf("b")
	c := h.run("c", tasktest.Forever)
	if err := shim.kill(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{b.ID().Container, c.ID().Container} {
		h.once(task.EventDelete, name, 137)
	}
	// The sockets of a group wait for its next shim.
	sockets, err := filepath.Glob(filepath.Join(h.cfg.SocketDir, "*"))
	if err != nil || len(sockets) != 2 {
		t.Errorf("sockets %v, %v; want the group's and its debug socket", sockets, err)
	}
	for _, path := range sockets {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}
