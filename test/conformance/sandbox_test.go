package conformance

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/berthd/berth/test/harness"
)

// sandboxShim builds the test's shim, once in a test process.
var sandboxShim = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sandboxshim")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "containerd-shim-sandbox-v1")
	cmd := exec.Command("go", "build", "-o", path, "../sandboxshim")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)), os.RemoveAll(dir))
	}
	return path, nil
})

// shimIn puts the shim into the daemon's directory, where it goes with it.
func shimIn(t *testing.T, d *harness.Daemon) string {
	t.Helper()
	built, err := sandboxShim()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Dir, "bin", "containerd-shim-sandbox-v1")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := sandboxShim(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a temporary directory
	}
	os.Exit(code)
}

func newSandbox(ctx context.Context, t *testing.T, c *client.Client, id, shim string) (client.Sandbox, error) {
	t.Helper()
	return c.NewSandbox(ctx, id, client.WithSandboxRuntime(shim, nil), client.WithSandboxSpec(&oci.Spec{Version: "1.2.0"}))
}

func sandboxBundles(d *harness.Daemon) []string {
	found, _ := filepath.Glob(filepath.Join(d.State, "io.containerd.sandbox.controller.v1.shim", d.Namespace, "*")) // well formed
	return found
}

// The life of a sandbox, in a shim that serves them.
func TestSandboxController(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		shim, c, id := shimIn(t, d), d.Client(t), d.ID("pod")
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), time.Minute)
		defer cancel()
		events, errs := c.Subscribe(ctx, `topic~="^/sandboxes/"`)
		sb, err := newSandbox(ctx, t, c, id, shim)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newSandbox(ctx, t, c, id, shim); !errdefs.IsAlreadyExists(err) {
			t.Errorf("a second one of the name: %v, want AlreadyExists", err)
		}
		if err := sb.Start(ctx); err != nil {
			t.Fatal(err)
		}
		controller := c.SandboxController("shim")
		status, err := controller.Status(ctx, id, true)
		if err != nil || status.State != "ready" || len(sandboxBundles(d)) != 1 || status.Info["bundle"] != sandboxBundles(d)[0] {
			t.Errorf("status is %+v, %v; bundles %v", status, err, sandboxBundles(d))
		}
		if m, err := controller.Metrics(ctx, id); err != nil || m.ID != id {
			t.Errorf("metrics are %v, %v", m, err)
		}

		for _, topic := range []string{"/sandboxes/create", "/sandboxes/start"} {
			select {
			case env := <-events:
				if env.Topic != topic {
					t.Errorf("event %s, want %s", env.Topic, topic)
				}
			case err := <-errs:
				t.Fatal(err)
			}
		}
		events, errs = c.Subscribe(ctx, `topic~="^/sandboxes/"`)
		exited, err := sb.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := sb.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if e := <-exited; e.ExitCode() != 7 || e.Error() != nil {
			t.Errorf("it ended with %d, %v", e.ExitCode(), e.Error())
		}
		select {
		case env := <-events:
			if env.Topic != "/sandboxes/exit" {
				t.Errorf("event %s after the exit", env.Topic)
			}
		case err := <-errs:
			t.Fatal(err)
		}
		if err := sb.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		if left := sandboxBundles(d); len(left) != 0 {
			t.Errorf("left after the shutdown: %v", left)
		}
		if err := controller.Stop(ctx, id); err != nil {
			t.Errorf("stop of what is gone: %v", err)
		}
		if _, err := controller.Wait(ctx, id); !errdefs.IsNotFound(err) {
			t.Errorf("wait for what is gone: %v, want NotFound", err)
		}
		if s, err := controller.Status(ctx, id, false); err != nil || s.State != "" || s.ExitedAt.IsZero() {
			t.Errorf("status of what is gone: %+v, %v", s, err)
		}
	})
}

// A sandbox that does not start leaves nothing but its record.
func TestSandboxFailures(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		shim, c := shimIn(t, d), d.Client(t)
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), time.Minute)
		defer cancel()
		bad, err := newSandbox(ctx, t, c, d.ID("x-bad"), shim)
		if err != nil {
			t.Fatal(err)
		}
		if err := bad.Start(ctx); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a sandbox that does not start: %v, want the shim's FailedPrecondition", err)
		}
		if left := sandboxBundles(d); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if err := c.SandboxStore().Delete(ctx, bad.ID()); err != nil {
			t.Error(err)
		}
	})
}

func TestCtrSandboxes(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		shim, id := shimIn(t, d), d.ID("ctr")
		spec := filepath.Join(t.TempDir(), "spec.json")
		if err := os.WriteFile(spec, []byte(`{"ociVersion":"1.2.0"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		d.MustCtr(t, "sandboxes", "run", "--runtime", shim, spec, id)
		if out := d.MustCtr(t, "sandboxes", "ls"); !strings.Contains(out, id) {
			t.Errorf("list: %s", out)
		}
		if out := d.MustCtr(t, "sandboxes", "info", id); !strings.Contains(out, id) {
			t.Errorf("info: %s", out)
		}
		d.MustCtr(t, "sandboxes", "rm", id)
		if out := d.MustCtr(t, "sandboxes", "ls"); strings.Contains(out, id) {
			t.Errorf("list after rm: %s", out)
		}
	})
}

// What stock does not do: it tells neither the platform nor where to reach the
// shim, forgets sandboxes when it restarts, and leaves a shim that serves none.
func TestSandboxBeyondStock(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	shim, c, id := shimIn(t, d), d.Client(t), d.ID("pod")
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), time.Minute)
	defer cancel()
	sb, err := newSandbox(ctx, t, c, id, shim)
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := c.Conn().(grpc.ClientConnInterface)
	if !ok {
		t.Fatal("not a gRPC connection")
	}
	direct := sandboxapi.NewControllerClient(conn)
	started, err := direct.Start(ctx, &sandboxapi.ControllerStartRequest{SandboxID: id, Sandboxer: "shim"})
	if err != nil || !strings.HasPrefix(started.Address, "ttrpc+unix:///") || started.Version != 3 {
		t.Errorf("start answers %v, %v", started, err)
	}
	p, err := c.SandboxController("shim").Platform(ctx, id)
	if err != nil || p.Architecture != "riscv64" {
		t.Errorf("platform is %v, %v", p, err)
	}
	if _, err := direct.Update(ctx, &sandboxapi.ControllerUpdateRequest{
		SandboxID: id, Sandboxer: "shim", Sandbox: &types.Sandbox{SandboxID: id}, Fields: []string{"labels"},
	}); err != nil {
		t.Error(err)
	}
	d.Kill(t)
	d.Boot(t)
	if status, err := c.SandboxController("shim").Status(ctx, id, true); err != nil || status.State != "ready" || status.Info["updates"] != "1" {
		t.Errorf("status after the daemon's restart: %+v, %v", status, err)
	}
	if _, err := newSandbox(ctx, t, c, d.ID("runc"), "io.containerd.runc.v2"); !errdefs.IsNotImplemented(err) {
		t.Errorf("a shim without sandboxes: %v, want NotImplemented", err)
	}
	if err := c.SandboxStore().Delete(ctx, d.ID("runc")); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(int(started.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Await(t, time.Minute, "the shim's end", func() bool { return harness.Ended(int(started.GetPid())) })
	if _, err := c.SandboxController("shim").Status(ctx, id, false); !errdefs.IsUnavailable(err) {
		t.Errorf("status without a shim: %v, want Unavailable", err)
	}
	if err := sb.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if left := sandboxBundles(d); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	// The shim was killed: its socket stays, as after every shim that is.
	sockets, _ := filepath.Glob(filepath.Join(d.State, "s", "sb*")) // well formed
	for _, path := range sockets {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}
