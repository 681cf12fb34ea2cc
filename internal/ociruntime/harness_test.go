package ociruntime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/test/fakeoci/faketest"
)

// limit bounds everything that a test waits for.
const limit = 30 * time.Second

// subject is a runtime that the contract holds for.
type subject struct {
	name   string
	binary func(t *testing.T) string
	// bundle fills dir with what the runtime needs to run the process.
	bundle func(t *testing.T, dir, id string, p *specs.Process)
}

var subjects = []subject{
	{"fakeoci", func(t *testing.T) string { return faketest.Binary(t) }, fakeBundle},
	{"runc", func(t *testing.T) string { return tool(t, "runc") }, runcBundle},
}

// tool finds a program that the tests need. That it is missing is a failure.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func fakeBundle(t *testing.T, dir, _ string, p *specs.Process) {
	spec := faketest.Spec()
	spec.Process = p
	faketest.WriteBundle(t, dir, spec)
}

// runcBundle makes a root file system of busybox and a spec with namespaces of
// its own and a cgroup that goes when the container does.
func runcBundle(t *testing.T, dir, id string, p *specs.Process) {
	bin := filepath.Join(dir, "rootfs", "bin")
	for _, d := range []string{bin, filepath.Join(dir, "rootfs", "proc"), filepath.Join(dir, "rootfs", "dev")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile(tool(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "cat", "true", "stty"} {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	faketest.WriteJSON(t, filepath.Join(dir, "config.json"), &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: p,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}},
		},
	})
}

// bench is a runtime with a root of its own, and what it takes to make containers.
type bench struct {
	*ociruntime.Runtime
	t   *testing.T
	sub subject
	dir string
}

func newBench(t *testing.T, s subject) *bench {
	t.Helper()
	dir := t.TempDir()
	return &bench{t: t, sub: s, dir: dir, Runtime: &ociruntime.Runtime{
		Binary: s.binary(t), Root: filepath.Join(dir, "root"), LogPath: filepath.Join(dir, "log.json"),
	}}
}

var lastID atomic.Int64

// box is a container of a bench.
type box struct {
	*bench
	id, bundle string
	pid        int
}

// newBox makes a bundle. Whatever becomes of the container, it is gone at the
// end of the test.
func (b *bench) newBox(p *specs.Process) *box {
	b.t.Helper()
	c := &box{bench: b, id: fmt.Sprintf("contract-%d-%d", os.Getpid(), lastID.Add(1))}
	c.bundle = filepath.Join(b.dir, c.id)
	b.sub.bundle(b.t, c.bundle, c.id, p)
	b.t.Cleanup(func() {
		if err := b.Delete(context.Background(), c.id, true); err != nil {
			b.t.Errorf("clean up: %v", err)
		}
		reapOrphans(b.t)
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.id); len(left) > 0 {
			b.t.Errorf("cgroups are left: %v", left)
		}
	})
	return c
}

func (c *box) args() ociruntime.CreateArgs {
	return ociruntime.CreateArgs{ID: c.id, Bundle: c.bundle, PidFile: filepath.Join(c.bundle, "init.pid")}
}

func (c *box) create() {
	c.t.Helper()
	c.createWith(c.args())
}

func (c *box) createWith(a ociruntime.CreateArgs) {
	c.t.Helper()
	pid, err := c.Create(ctx(c.t), a)
	if err != nil {
		c.t.Fatal(err)
	}
	c.pid = pid
}

func (c *box) start() {
	c.t.Helper()
	if err := c.Start(ctx(c.t), c.id); err != nil {
		c.t.Fatal(err)
	}
}

// running makes a container that does nothing.
func (b *bench) running() *box {
	b.t.Helper()
	c := b.newBox(sleeper())
	c.create()
	c.start()
	return c
}

// stopped makes one that was killed and not reaped.
func (b *bench) stopped() *box {
	b.t.Helper()
	c := b.running()
	if err := c.Kill(ctx(b.t), c.id, unix.SIGKILL, false); err != nil {
		b.t.Fatal(err)
	}
	ended(b.t, c.pid)
	return c
}

func (c *box) status() string {
	c.t.Helper()
	s, err := c.State(ctx(c.t), c.id)
	if err != nil {
		c.t.Fatal(err)
	}
	return s.Status
}

func (c *box) execArgs(name string, p *specs.Process) ociruntime.ExecArgs {
	c.t.Helper()
	file := filepath.Join(c.bundle, name+".json")
	faketest.WriteJSON(c.t, file, p)
	return ociruntime.ExecArgs{ID: c.id, ProcessFile: file, PidFile: filepath.Join(c.bundle, name+".pid")}
}

func sleeper() *specs.Process { return faketest.Process("sleep", "1000") }

func shell(script string) *specs.Process { return faketest.Process("sh", "-c", script) }

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return c
}

// ended waits until a process has ended, and leaves it to be reaped.
func ended(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := 0, error(unix.EINTR)
	for deadline := time.Now().Add(limit); errors.Is(err, unix.EINTR); {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
	}
	if err != nil || n != 1 {
		t.Fatalf("process %d does not end: %v", pid, err)
	}
}

// reap waits for a process to end and returns its exit status as a shell has
// it.
func reap(t *testing.T, pid int) int {
	t.Helper()
	ended(t, pid)
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("wait for %d: %v", pid, err)
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal())
		}
		return ws.ExitStatus()
	}
}

// reapOrphans collects what containers have left behind. It runs when no call
// is under way, and every zombie is one of theirs then.
func reapOrphans(t *testing.T) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // the thread is gone
		}
		for _, f := range strings.Fields(string(data)) {
			var pid int
			if _, err := fmt.Sscan(f, &pid); err == nil {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}

// wantError checks a failure: that it is typed, its class, and its text.
func wantError(t *testing.T, err error, op string, class error, text string) {
	t.Helper()
	var failed *task.RuntimeError
	if !errors.As(err, &failed) {
		t.Fatalf("error is %v, want a RuntimeError", err)
	}
	if failed.Op != op {
		t.Errorf("operation is %q, want %q", failed.Op, op)
	}
	if class != nil && !errors.Is(err, class) || class == nil && failed.Class != nil {
		t.Errorf("class of %q is %v, want %v", err, failed.Class, class)
	}
	if !strings.Contains(failed.Message, text) {
		t.Errorf("message is %q, want %q in it", failed.Message, text)
	}
}

// pipe returns a pipe whose read end is closed with the test.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if err := r.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	return r, w
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func contains(pids []int, pid int) bool { return slices.Contains(pids, pid) }
