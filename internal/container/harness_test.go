package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
)

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(faketest.Run(m))
}

// recorder keeps events in the order in which they came.
type recorder struct {
	mu     sync.Mutex
	events []task.Event
	at     []time.Time
	// dying: the shim is killed before it emits anything.
	dying bool
}

func (r *recorder) Emit(e task.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dying {
		return
	}
	r.events, r.at = append(r.events, e), append(r.at, time.Now())
}

func (r *recorder) Told(e task.Event, since time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, got := range r.events {
		if got.Kind == e.Kind && got.ID == e.ID && got.ExecID == e.ExecID && !r.at[i].Before(since) {
			return true
		}
	}
	return false
}

// die stands for the death of the shim after it has stored a state and before
// it tells; and for its end.
func (r *recorder) die(dying bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dying = dying
}

func (r *recorder) list() []task.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]task.Event{}, r.events...)
}

// harness runs containers with one runtime binary.
type harness struct {
	binary string
	real   bool // a real runtime: containers are confined
	dir    string
	rootfs string
	events *recorder
	reaper *reap.Reaper
	set    *Set
}

func newHarness(t *testing.T, binary string, real bool) *harness {
	t.Helper()
	h := &harness{binary: binary, real: real, dir: t.TempDir(), events: &recorder{}}
	if real {
		h.rootfs = busyboxRootfs(t)
	}
	if err := os.Mkdir(filepath.Join(h.dir, "members"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.open(t)()
	t.Cleanup(func() { h.close(t) })
	return h
}

// open makes a set, the first or a successor's. Until the result is called no
// orphan is swept: the children of a predecessor are ours, not a guard's.
func (h *harness) open(t *testing.T) (sweep func()) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := reap.New(log, nil)
	if err != nil {
		t.Fatal(err)
	}
	sweep = reaper.Hold()
	h.reaper = reaper
	h.set, err = New(Config{
		Reaper: reaper, Events: h.events, Members: filepath.Join(h.dir, "members"),
		RuntimeRoot: filepath.Join(h.dir, "runtime"), Log: log,
		DecodeOptions: func(task.Any) (Options, error) { return Options{Binary: h.binary}, nil },
		DecodeCheckpointOptions: func(task.Any) (CheckpointOptions, error) {
			return CheckpointOptions{}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return sweep
}

func (h *harness) close(t *testing.T) {
	if h.set == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// In this order, as a death has it: what is not seen by now is not seen.
	if err := h.reaper.Close(); err != nil {
		t.Error(err)
	}
	if err := h.set.Close(ctx); err != nil {
		t.Error(err)
	}
	h.set = nil
}

func (h *harness) Runner() task.Runner  { return h.set }
func (h *harness) Namespace() string    { return "test" }
func (h *harness) Events() []task.Event { return h.events.list() }

func (h *harness) Config(t *testing.T, id, script string) task.CreateConfig {
	t.Helper()
	bundle := filepath.Join(h.dir, "bundles", id)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	spec := faketest.Spec("/bin/sh", "-c", script)
	var mounts []task.Mount
	if h.real {
		confine(spec, "/berth-test/"+filepath.Base(filepath.Dir(h.dir))+"-"+id)
		mounts = []task.Mount{{Type: "bind", Source: h.rootfs, Options: []string{"rbind", "ro"}}}
	}
	faketest.WriteJSON(t, filepath.Join(bundle, "config.json"), spec)
	return task.CreateConfig{Bundle: bundle, Rootfs: mounts}
}

func (h *harness) Exec(t *testing.T, script string) task.ExecConfig {
	t.Helper()
	data, err := json.Marshal(faketest.Process("/bin/sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	return task.ExecConfig{Spec: data}
}

// confine gives the spec what a real runtime needs.
func confine(s *specs.Spec, cgroup string) {
	for _, ns := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
	}
	s.Linux.CgroupsPath = cgroup
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"},
	}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
	}
	s.Root.Readonly = true
}

// busyboxRootfs makes a root file system with a static shell.
func busyboxRootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "proc", "dev", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "/bin/busybox", filepath.Join(dir, "bin", "busybox")).CombinedOutput(); err != nil {
		t.Fatalf("busybox-static is needed: %v: %s", err, out)
	}
	for _, applet := range []string{"sh", "sleep", "true", "cat", "echo", "head", "yes"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// checkClean says what a test has left in the places that containers use.
func (h *harness) checkClean(t *testing.T) {
	t.Helper()
	members, err := os.ReadDir(filepath.Join(h.dir, "members"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		t.Errorf("member %s is left", m.Name())
	}
	states, err := os.ReadDir(filepath.Join(h.dir, "runtime", "test"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, s := range states {
		if s.IsDir() {
			t.Errorf("the runtime still knows %s", s.Name())
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/berth-test/" + filepath.Base(filepath.Dir(h.dir)) + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		t.Errorf("cgroup %s is left", g)
	}
	// The cgroup above them, which runc leaves. It stays where a run that was
	// killed has left a container in it.
	above, err := filepath.Glob("/sys/fs/cgroup/*/berth-test")
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range above {
		if err := os.Remove(g); err != nil && !errors.Is(err, unix.EBUSY) {
			t.Error(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if contains(string(mounts), h.dir) {
		t.Errorf("mounts are left below %s", h.dir)
	}
}

// fakeHarness has checkpoints, which the fake runtime makes without CRIU.
type fakeHarness struct{ *harness }

func (h fakeHarness) Image(t *testing.T) string { return faketest.Image(t) }

// realHarness has cgroups.
type realHarness struct{ *harness }

func (h realHarness) HasStats() bool { return true }

func TestFakeRuntime(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Harness {
		h := newHarness(t, faketest.Binary(t), false)
		t.Cleanup(func() { h.checkClean(t) })
		return fakeHarness{h}
	})
}

func TestRunc(t *testing.T) {
	binary, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	tasktest.Run(t, func(t *testing.T) tasktest.Harness {
		h := newHarness(t, binary, true)
		t.Cleanup(func() { h.checkClean(t) })
		return realHarness{h}
	})
}

func contains(s, sub string) bool { return strings.Contains(s, sub) }

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
