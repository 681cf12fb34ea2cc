package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/berthd/berth/internal/events"
	"github.com/berthd/berth/internal/faketask"
	"github.com/berthd/berth/internal/testimage"
)

const patience = 20 * time.Second

// fakeRuntime makes engines run their tasks in memory.
func fakeRuntime(r *faketask.Runner) openRuntime {
	return func(context.Context, Config, mount.Manager, *events.Exchange) (runtime, error) { return r, nil }
}

func testConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state")}
}

func openFake(t *testing.T, cfg Config, r *faketask.Runner) *Engine {
	t.Helper()
	e, err := open(t.Context(), cfg, fakeRuntime(r))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeEngine(t, e) })
	return e
}

func closeEngine(t *testing.T, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Error(err)
	}
}

func newClient(t *testing.T, e *Engine) *client.Client {
	t.Helper()
	c, err := e.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "default"), patience)
	t.Cleanup(cancel)
	return ctx
}

// importImage imports a small image from an archive.
func importImage(t *testing.T, c *client.Client, ref string) client.Image {
	t.Helper()
	ctx := testContext(t)
	f, err := os.Open(testimage.Archive(t, ref, testimage.Config{}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := c.Import(ctx, f); err != nil {
		t.Fatal(err)
	}
	img, err := c.GetImage(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Unpack(ctx, ""); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestClientWithoutATransport(t *testing.T) {
	e := openFake(t, testConfig(t), &faketask.Runner{})
	c := newClient(t, e)
	ctx := testContext(t)

	seen, errs := c.Subscribe(ctx, `topic~="/(images|containers)/"`)
	img := importImage(t, c, "example.test/small:1")
	container, err := c.NewContainer(ctx, "c", client.WithNewSnapshot("c", img), client.WithNewSpec(oci.WithImageConfig(img)))
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	list, err := c.Containers(ctx)
	if err != nil || len(list) != 1 || list[0].ID() != "c" {
		t.Errorf("containers are %v, %v", list, err)
	}
	_, err = container.NewTask(ctx, cio.NullIO)
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second task gives %v, want AlreadyExists", err)
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := <-exited; s.ExitCode() != 137 || s.Error() != nil {
		t.Errorf("task ended with %d, %v", s.ExitCode(), s.Error())
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Error(err)
	}
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		t.Error(err)
	}
	if err := c.ImageService().Delete(ctx, img.Name(), images.SynchronousDelete()); err != nil {
		t.Error(err)
	}
	if _, err := c.ContentStore().Info(ctx, img.Target().Digest); !errdefs.IsNotFound(err) {
		t.Errorf("a synchronous delete leaves the content: %v", err)
	}
	for _, topic := range []string{"/images/create", "/containers/create", "/containers/delete", "/images/delete"} {
		for found := false; !found; {
			select {
			case env := <-seen:
				found = env.Topic == topic
			case err := <-errs:
				t.Fatalf("no event %s: %v", topic, err)
			}
		}
	}

	// What the client can only do over a connection.
	if v, err := c.Version(ctx); err != nil || v.Version == "" {
		t.Errorf("version is %v, %v", v, err)
	}
	if ok, err := c.IsServing(ctx); !ok || err != nil {
		t.Errorf("serving: %v, %v", ok, err)
	}
	if s, err := c.Server(ctx); err != nil || s.UUID == "" {
		t.Errorf("server is %v, %v", s, err)
	}
	if info, err := c.RuntimeInfo(ctx, "/bin/shim", nil); err != nil || info.Name != "/bin/shim" {
		t.Errorf("runtime info is %v, %v", info, err)
	}
}

func TestEngineOverItsSocket(t *testing.T) {
	cfg := testConfig(t)
	e := openFake(t, cfg, &faketask.Runner{})
	l, err := e.Listen(os.Geteuid(), os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(l) }()
	remote, err := client.New(e.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = remote.Close() }()
	ctx := testContext(t)

	// Both clients see one engine.
	if _, err := newClient(t, e).NewContainer(ctx, "c", client.WithNewSpec()); err != nil {
		t.Fatal(err)
	}
	container, err := remote.LoadContainer(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	closeEngine(t, e)
	if err := <-served; err != nil {
		t.Errorf("Serve ends with %v", err)
	}
	if s := <-exited; s.Error() == nil {
		t.Error("a wait outlives its engine")
	}
	if _, err := os.Lstat(e.Address()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

func TestTasksAreThereAfterReopening(t *testing.T) {
	cfg := testConfig(t)
	runner := &faketask.Runner{}
	first := openFake(t, cfg, runner)
	ctx := testContext(t)
	container, err := newClient(t, first).NewContainer(ctx, "c", client.WithNewSpec())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := container.NewTask(ctx, cio.NullIO); err != nil {
		t.Fatal(err)
	}
	closeEngine(t, first)
	closeEngine(t, first) // again

	second := openFake(t, cfg, runner)
	select {
	case <-second.Loaded():
	case <-time.After(patience):
		t.Fatal("the tasks are not taken up")
	}
	if container, err = newClient(t, second).LoadContainer(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := task.Status(ctx); err != nil || s.Status != client.Created {
		t.Errorf("status is %v, %v", s, err)
	}
}

func TestEventsOfShimsReachSubscribers(t *testing.T) {
	e := openFake(t, testConfig(t), &faketask.Runner{})
	ctx := testContext(t)
	ch, errs := newClient(t, e).Subscribe(ctx)
	payload, err := typeurl.MarshalAny(&eventsapi.TaskOOM{ContainerID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	forwardOverTTRPC(t, e.Address()+".ttrpc", "red", "/tasks/oom", payload)
	select {
	case env := <-ch:
		if env.Namespace != "red" || env.Topic != "/tasks/oom" {
			t.Errorf("event is %v", env)
		}
	case err := <-errs:
		t.Fatal(err)
	}
}

func TestRootAndStateHaveOneOwner(t *testing.T) {
	cfg := testConfig(t)
	holder := holdLock(t, cfg.Root)
	_, err := open(t.Context(), cfg, fakeRuntime(&faketask.Runner{}))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", holder.Process.Pid)) {
		t.Errorf("a root in use gives %v, want FailedPrecondition and pid %d", err, holder.Process.Pid)
	}
	// A lock does not outlive its process.
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // killed
	e := openFake(t, cfg, &faketask.Runner{})

	other := testConfig(t)
	other.State = cfg.State
	_, err = open(t.Context(), other, fakeRuntime(&faketask.Runner{}))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a state directory in use gives %v", err)
	}
	other = testConfig(t)
	other.Address = cfg.State + "/berth.sock"
	_, err = open(t.Context(), other, fakeRuntime(&faketask.Runner{}))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("an address in use gives %v", err)
	}
	// What was refused holds nothing.
	other.Address = ""
	openFake(t, other, &faketask.Runner{})
	for dir, mode := range map[string]os.FileMode{cfg.Root: 0o700, cfg.State: 0o711} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s is %v, %v, want %v", dir, info.Mode(), err, mode)
		}
	}
	closeEngine(t, e)
}

// holdLock starts a process that holds the lock of a root, as another daemon
// would.
func holdLock(t *testing.T, root string) *exec.Cmd {
	t.Helper()
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(root, "lock")
	cmd := exec.Command("flock", lock, "/bin/sh", "-c", `echo $PPID > "$0"; echo locked; read x`, lock)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close() }) // ends the shell
	buf := make([]byte, 16)
	if n, err := stdout.Read(buf); err != nil || string(buf[:n]) != "locked\n" {
		t.Fatalf("lock holder says %q, %v", buf[:n], err)
	}
	return cmd
}

func TestBadConfigs(t *testing.T) {
	good := testConfig(t)
	for name, spoil := range map[string]func(*Config){
		"relative root":       func(c *Config) { c.Root = "root" },
		"relative state":      func(c *Config) { c.State = "./state" },
		"one directory":       func(c *Config) { c.State = c.Root },
		"relative address":    func(c *Config) { c.Address = "sock" },
		"unknown snapshotter": func(c *Config) { c.Snapshotter = "zfs" },
	} {
		cfg := good
		spoil(&cfg)
		if e, err := open(t.Context(), cfg, fakeRuntime(&faketask.Runner{})); err == nil {
			t.Errorf("%s is taken", name)
			closeEngine(t, e)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error has several lines: %q", name, err)
		}
	}
	refused := errors.New("no shim today")
	_, err := open(t.Context(), good, func(context.Context, Config, mount.Manager, *events.Exchange) (runtime, error) { return nil, refused })
	if !errors.Is(err, refused) {
		t.Errorf("a runtime that does not open gives %v", err)
	}
	openFake(t, good, &faketask.Runner{}) // nothing of the failures holds it
}
