package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

// timeout bounds each step of a test.
const timeout = 30 * time.Second

// binaries are built once a test process, into a directory that TestMain
// removes.
var binaries struct {
	dir        string
	own, stock func() (string, error)
}

func TestMain(m *testing.M) {
	if mode, ok := fakeMode(); ok {
		os.Exit(runFake(mode))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "supervisor")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Fake shims are this binary: with the race detector they would sleep a
	// second before they end.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	binaries.dir = dir
	binaries.own = sync.OnceValues(func() (string, error) {
		return build(".", filepath.Join(dir, "containerd-shim-berth-v2"), "github.com/berthd/berth/cmd/containerd-shim-berth-v2")
	})
	binaries.stock = sync.OnceValues(func() (string, error) {
		return build("../../test/peers/containerd", filepath.Join(dir, "containerd-shim-runc-v2"), "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
	})
	return m.Run()
}

func build(dir, out, pkg string) (string, error) {
	cmd := exec.Command("go", "build", "-tags", "no_grpc", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return out, nil
}

func ownShimBinary(t testing.TB) string   { return built(t, binaries.own) }
func stockShimBinary(t testing.TB) string { return built(t, binaries.stock) }

func built(t testing.TB, binary func() (string, error)) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// collector takes events from shims, by ttrpc, and from the supervisor.
type collector struct {
	mu     sync.Mutex
	events []task.Event // guarded by mu
}

func (c *collector) Forward(_ context.Context, req *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	event, err := typeurl.UnmarshalAny(req.Envelope.Event)
	if err != nil {
		return nil, err
	}
	c.add(req.Envelope.Namespace, event)
	return &emptypb.Empty{}, nil
}

func (c *collector) Publish(_ context.Context, _ string, event coreevents.Event) error {
	c.add("", event)
	return nil
}

func (c *collector) add(ns string, event any) {
	e, ok := tasktest.DecodeEvent(ns, event)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

// of returns the events of one kind of one container.
func (c *collector) of(kind task.EventKind, container string) []task.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []task.Event
	for _, e := range c.events {
		if e.Kind == kind && e.ID.Container == container {
			found = append(found, e)
		}
	}
	return found
}

// harness is a supervisor with its directories, which can be opened again and
// again.
type harness struct {
	t      *testing.T
	dir    string // short, for sockets
	rootfs string
	cfg    Config
	events *collector
	sup    *Supervisor
	// runtime is what Config names; "" for Berth's shim.
	runtime string
	// annotations of the specs that Config makes.
	annotations map[string]string
}

// newHarness opens a supervisor. change may be nil.
func newHarness(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	dir, err := os.MkdirTemp("", "b")
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, dir: dir, events: &collector{}}
	t.Cleanup(func() {
		h.checkClean()
		os.RemoveAll(dir)
	})
	h.cfg = Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"),
		Address: filepath.Join(dir, "berth.sock"), TTRPCAddress: filepath.Join(dir, "events.sock"),
		SocketDir: filepath.Join(dir, "s"), ShimBinary: "/nonexistent/shim",
		Linger: 100 * time.Millisecond, Debug: true, Publisher: h.events,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&h.cfg)
	}
	h.serveEvents()
	h.open()
	t.Cleanup(h.finish)
	return h
}

func (h *harness) serveEvents() {
	l, err := net.Listen("unix", h.cfg.TTRPCAddress)
	if err != nil {
		h.t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		h.t.Fatal(err)
	}
	ttrpcevents.RegisterTTRPCEventsService(srv, h.events)
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(context.Background(), l) }()
	h.t.Cleanup(func() { srv.Close(); <-served })
}

// open opens the supervisor and takes up what there is.
func (h *harness) open() {
	h.t.Helper()
	sup, err := Open(context.Background(), h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.sup = sup
	if err := sup.Load(h.ctx()); err != nil {
		h.t.Fatal(err)
	}
}

// close is what an orderly end of the daemon does.
func (h *harness) close() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := h.sup.Close(ctx); err != nil {
		h.t.Error(err)
	}
	// Of the transport's goroutines, the last may be about to end.
	h.poll("the supervisor's goroutines to end", func() bool {
		buf := make([]byte, 1<<20)
		stacks := string(buf[:goruntime.Stack(buf, true)])
		return !strings.Contains(stacks, "supervisor.(*Supervisor)") && !strings.Contains(stacks, "supervisor.(*keeper)") &&
			!strings.Contains(stacks, "supervisor.copyLog") && !strings.Contains(stacks, "supervisor.(*Task)")
	})
}

func (h *harness) reopen() {
	h.t.Helper()
	h.close()
	h.open()
}

// finish deletes what a test has left and waits until the groups are gone.
func (h *harness) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	h.sup.mu.Lock()
	var all []*Task
	for _, t := range h.sup.tasks {
		all = append(all, t)
	}
	h.sup.mu.Unlock()
	for _, t := range all {
		if st, err := t.State(ctx); err == nil && st.Status != task.Stopped && st.Status != task.Created {
			if t.Kill(ctx, 9, true) == nil {
				t.Wait(ctx)
			}
		}
		if _, err := t.Delete(ctx); err != nil && !t.isGone() {
			h.t.Errorf("delete %s at the end: %v", t.ID(), err)
		}
	}
	h.poll("the groups to end", func() bool {
		h.sup.mu.Lock()
		defer h.sup.mu.Unlock()
		return len(h.sup.groups) == 0
	})
	h.close()
}

// checkClean fails the test for bundles, mounts, groups, sockets and
// processes that are left. What was told to end may take a moment.
func (h *harness) checkClean() {
	var left []string
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left = h.left(); len(left) == 0 {
			h.removeNamespaceCgroup()
			return
		}
	}
	h.t.Errorf("left behind: %q", left)
}

// removeNamespaceCgroup removes the cgroup above those of the containers: runc
// makes it and leaves it. One that is not empty is a container's that is left.
func (h *harness) removeNamespaceCgroup() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		dirs, err := filepath.Glob(pattern + h.Namespace())
		if err != nil {
			h.t.Fatal(err)
		}
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil {
				h.t.Errorf("left behind: %v", err)
			}
		}
	}
}

func (h *harness) left() []string {
	left := h.processes()
	for _, pattern := range []string{"state/" + bundle.Subdir + "/*/*", "root/" + bundle.Subdir + "/*/*", "state/" + bundle.Subdir + "/*/.*", "state/" + groupSubdir + "/*/*", "s/*"} {
		paths, err := filepath.Glob(filepath.Join(h.dir, pattern))
		if err != nil {
			h.t.Fatal(err)
		}
		left = append(left, paths...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.dir) {
			left = append(left, line)
		}
	}
	return left
}

// processes finds those that mention the test's directory in their command
// line.
func (h *harness) processes() []string {
	var found []string
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(data), h.dir+"/") {
			found = append(found, filepath.Base(filepath.Dir(f))+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

// stop stops a process, until resume is called or the test ends.
func (h *harness) stop(id identity) (resume func()) {
	h.t.Helper()
	if err := unix.Kill(id.pid, unix.SIGSTOP); err != nil {
		h.t.Fatal(err)
	}
	resume = sync.OnceFunc(func() { unix.Kill(id.pid, unix.SIGCONT) })
	h.t.Cleanup(resume)
	// The signal is sent; every thread stops when it is its turn.
	h.poll("the process to stop", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", id.pid))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(stat), ") T ") {
				return false
			}
		}
		return len(threads) > 0
	})
	return resume
}

func (h *harness) poll(what string, done func() bool) {
	h.t.Helper()
	for end := time.Now().Add(timeout); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("waited %v for %s", timeout, what)
		}
	}
}

func (h *harness) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *harness) id(name string) task.ID { return task.ID{Namespace: h.Namespace(), Container: name} }

func (h *harness) create(name, script string) task.Task {
	h.t.Helper()
	c, err := h.sup.Create(h.ctx(), h.id(name), h.Config(h.t, name, script))
	if err != nil {
		h.t.Fatalf("create: %v", err)
	}
	return c
}

func (h *harness) run(name, script string) task.Task {
	h.t.Helper()
	c := h.create(name, script)
	if _, err := c.Start(h.ctx()); err != nil {
		h.t.Fatalf("start: %v", err)
	}
	return c
}

func (h *harness) get(name string) task.Task {
	h.t.Helper()
	c, err := h.sup.Get(h.ctx(), h.id(name))
	if err != nil {
		h.t.Fatalf("get: %v", err)
	}
	return c
}

func (h *harness) wait(p task.Process, status uint32) {
	h.t.Helper()
	exit, err := p.Wait(h.ctx())
	if err != nil || exit.Status != status {
		h.t.Errorf("wait: %+v, %v; want status %d", exit, err, status)
	}
}

func (h *harness) del(p task.Process, status uint32) {
	h.t.Helper()
	exit, err := p.Delete(h.ctx())
	if err != nil || exit.Status != status {
		h.t.Errorf("delete: %+v, %v; want status %d", exit, err, status)
	}
}

// The rest is what tasktest needs.

func (h *harness) Runner() task.Runner { return h.sup }
func (h *harness) Namespace() string   { return "ns" + filepath.Base(h.dir) }

// Events is nil: the suite wants them at once, and they come by ttrpc.
func (h *harness) Events() []task.Event { return nil }

func (h *harness) Config(t *testing.T, id, script string) task.CreateConfig {
	t.Helper()
	if h.rootfs == "" {
		h.rootfs = busyboxRootfs(t, filepath.Join(h.dir, "rootfs"))
	}
	return task.CreateConfig{
		Spec: h.spec(t, id, script), Runtime: h.runtime,
		Rootfs: []task.Mount{{Type: "bind", Source: h.rootfs, Options: []string{"rbind", "ro"}}},
	}
}

func (h *harness) Exec(t *testing.T, script string) task.ExecConfig {
	t.Helper()
	data, err := json.Marshal(process1(script))
	if err != nil {
		t.Fatal(err)
	}
	return task.ExecConfig{Spec: data}
}

func process1(script string) *specs.Process {
	return &specs.Process{
		Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
		Capabilities: &specs.LinuxCapabilities{
			Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"},
		},
	}
}

func (h *harness) spec(t *testing.T, id, script string) []byte {
	t.Helper()
	s := specs.Spec{
		Version: "1.0.2", Process: process1(script), Annotations: h.annotations,
		Root: &specs.Root{Path: "rootfs", Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + h.Namespace() + "/" + id,
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
		},
	}
	for _, ns := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func busyboxRootfs(t *testing.T, dir string) string {
	t.Helper()
	for _, d := range []string{"bin", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox is not installed: %v", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "sleep", "true", "cat", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
