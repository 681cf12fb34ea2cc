package engine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// buildShim builds Berth's shim.
func buildShim(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd-shim-berth-v2")
	cmd := exec.Command("go", "build", "-tags", "no_grpc", "-o", path, "../cmd/containerd-shim-berth-v2")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the shim: %v\n%s", err, out)
	}
	return path
}

// realConfig is for engines that run containers. Its directories have short
// paths, which sockets need, and are looked through for what is left at the
// end.
func realConfig(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), ShimBinary: buildShim(t), Linger: 50 * time.Millisecond,
	}
	t.Cleanup(func() {
		checkLeaks(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return cfg
}

// checkLeaks finds mounts and processes that have to do with dir. Shims end by
// themselves soon after their last container.
func checkLeaks(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	bundles, err := filepath.Glob(filepath.Join(dir, "state", "io.containerd.runtime.v2.task", "*", "*"))
	if err != nil || len(bundles) > 0 {
		t.Errorf("bundles are left: %v, %v", bundles, err)
	}
	var left []string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if left = processesOf(t, dir); len(left) == 0 {
			return
		}
	}
	t.Errorf("processes are left: %q", left)
}

func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, path+": "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func openReal(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeEngine(t, e) })
	return e
}

// newContainer makes a container of an image that runs args.
func newContainer(t *testing.T, c *client.Client, img client.Image, id string, args ...string) client.Container {
	t.Helper()
	container, err := c.NewContainer(testContext(t), id, client.WithNewSnapshot(id, img),
		client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs(args...)))
	if err != nil {
		t.Fatal(err)
	}
	return container
}

func runToEnd(t *testing.T, task client.Task) client.ExitStatus {
	t.Helper()
	ctx := testContext(t)
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return <-exited
}

func TestContainersInProcess(t *testing.T) {
	e := openReal(t, realConfig(t))
	c := newClient(t, e)
	ctx := testContext(t)
	img := importImage(t, c, "example.test/small:1")

	container := newContainer(t, c, img, "hello", "/bin/sh", "-c", "echo out; echo err >&2; read x; echo $x; exit 42")
	var stdout, stderr bytes.Buffer
	task, err := container.NewTask(ctx, cio.NewCreator(
		cio.WithStreams(strings.NewReader("in\n"), &stdout, &stderr), cio.WithFIFODir(t.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	if s := runToEnd(t, task); s.ExitCode() != 42 || s.Error() != nil {
		t.Errorf("container ended with %d, %v", s.ExitCode(), s.Error())
	}
	task.IO().Wait()
	if stdout.String() != "out\nin\n" || stderr.String() != "err\n" {
		t.Errorf("container wrote %q and %q", &stdout, &stderr)
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}

	bad := newContainer(t, c, img, "bad", "/no/such/program")
	if task, err := bad.NewTask(ctx, cio.NullIO); err == nil {
		t.Error("a program that is not there can be created")
		_, _ = task.Delete(ctx)
	} else if !strings.Contains(err.Error(), "/no/such/program") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a program that is not there gives %q", err)
	}
	if err := bad.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}
}

func TestContainersOutliveTheEngine(t *testing.T) {
	cfg := realConfig(t)
	first := openReal(t, cfg)
	c := newClient(t, first)
	ctx := testContext(t)
	img := importImage(t, c, "example.test/small:1")
	container := newContainer(t, c, img, "stays", "/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	pid := task.Pid()
	closeEngine(t, first)
	if err := syscall.Kill(int(pid), 0); err != nil {
		t.Fatalf("the container has ended with the engine: %v", err)
	}

	second := openReal(t, cfg)
	container, err = newClient(t, second).LoadContainer(ctx, "stays")
	if err != nil {
		t.Fatal(err)
	}
	task, err = container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if task.Pid() != pid {
		t.Errorf("the task has pid %d, had %d", task.Pid(), pid)
	}
	process, err := task.Exec(ctx, "look", &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	ended, err := process.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if s := <-ended; s.ExitCode() != 0 {
		t.Errorf("exec after the reopening ended with %d, %v", s.ExitCode(), s.Error())
	}
	if _, err := process.Delete(ctx); err != nil {
		t.Error(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Kill(ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := <-exited; s.ExitCode() != 7 {
		t.Errorf("the container ended with %d, %v, want 7", s.ExitCode(), s.Error())
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}
	if _, err := container.Task(ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("the deleted task gives %v", err)
	}
}
