package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
)

const (
	// sandboxSubdir holds the bundles of sandboxes, as containerd names it.
	sandboxSubdir  = "io.containerd.sandbox.controller.v1.shim"
	sandboxService = "containerd.runtime.sandbox.v1.Sandbox"
)

// Sandboxes starts shims that serve the sandbox API, and passes its calls to
// them: it is a sandbox.Controller. What it has to know is in the bundles, so
// that nothing is taken up after a restart; each call connects anew.
type Sandboxes struct {
	s       *Supervisor
	bundles *bundle.Store

	mu   sync.Mutex
	busy map[task.ID]bool     // is being created or removed. Guarded by mu
	logs map[task.ID]*os.File // FIFOs of the shims' logs. Guarded by mu
}

var _ sandbox.Controller = (*Sandboxes)(nil)

// Sandboxes is the controller of sandboxes; it ends with the supervisor.
func (s *Supervisor) Sandboxes() sandbox.Controller { return s.sandboxes }

// openSandboxes reads the logs of the shims of before again. Bundles of an
// earlier boot are removed.
func openSandboxes(s *Supervisor) (*Sandboxes, error) {
	bundles, err := bundle.OpenIn(s.cfg.State, s.cfg.Root, sandboxSubdir)
	if err != nil {
		return nil, err
	}
	c := &Sandboxes{s: s, bundles: bundles, busy: make(map[task.ID]bool), logs: make(map[task.ID]*os.File)}
	ids, left, err := bundles.Scan()
	if err == nil {
		err = bundles.Sweep(left)
	}
	for _, dir := range []string{s.cfg.State, s.cfg.Root} {
		err = errors.Join(err, os.Chmod(filepath.Join(dir, sandboxSubdir), 0o700))
	}
	if err != nil {
		bundles.Close()
		return nil, err
	}
	for _, id := range ids {
		if err := c.reopen(id); err != nil {
			s.cfg.Log.Warn("sandbox is not taken up", "sandbox", id.String(), "error", err)
		}
	}
	return c, nil
}

func (c *Sandboxes) reopen(id task.ID) error {
	b, err := c.bundles.Load(id)
	if err != nil {
		return err
	}
	if b.EarlierBoot() {
		return b.Delete()
	}
	if _, err := readBootstrap(b); errdefs.IsNotFound(err) {
		// It was being created when the daemon ended; a shim may run.
		free, err := c.take(id)
		if err != nil {
			return err
		}
		return c.s.work(func() {
			defer free()
			if err := c.remove(c.s.ctx, b); err != nil {
				c.s.cfg.Log.Warn("unfinished sandbox stays", "sandbox", id.String(), "error", err)
			}
		})
	}
	return c.openLog(b)
}

func (c *Sandboxes) openLog(b *bundle.Bundle) error {
	logs, err := b.OpenLog()
	if err != nil {
		return err
	}
	log := c.s.cfg.Log.With("namespace", b.ID.Namespace, "sandbox", b.ID.Container)
	if err := c.s.loop(func() { copyLog(log, logs) }); err != nil {
		logs.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs[b.ID] = logs
	return nil
}

// close leaves the shims running.
func (c *Sandboxes) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, logs := range c.logs {
		logs.Close()
	}
	c.logs = nil
	c.bundles.Close()
}

// take keeps others from creating or removing the sandbox until free is called.
func (c *Sandboxes) take(id task.ID) (free func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[id] {
		return nil, fmt.Errorf("sandbox %q is being created or removed; try again: %w", id.Container, errdefs.ErrUnavailable)
	}
	c.busy[id] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.busy, id)
	}, nil
}

// sandboxID is the id in the caller's namespace.
func sandboxID(ctx context.Context, name string) (task.ID, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return task.ID{}, err
	}
	id := task.ID{Namespace: ns, Container: name}
	return id, bundle.CheckID(id)
}

// Create starts the sandbox's shim and has it prepare the sandbox. It comes to
// its end whatever becomes of ctx; what fails leaves nothing.
func (c *Sandboxes) Create(ctx context.Context, info sandbox.Sandbox, opts ...sandbox.CreateOpt) error {
	id, err := sandboxID(ctx, info.ID)
	if err != nil {
		return err
	}
	var options sandbox.CreateOptions
	for _, opt := range opts {
		if err := opt(&options); err != nil {
			return err
		}
	}
	rt, err := c.s.resolve(info.Runtime.Name)
	if err != nil {
		return err
	}
	if rt.own {
		return fmt.Errorf("create sandbox %q: Berth's shim serves no sandboxes; choose a runtime that does: %w", id.Container, errdefs.ErrNotImplemented)
	}
	free, err := c.take(id)
	if err != nil {
		return err
	}
	defer free()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.s.cfg.Timeouts.startShim()+c.s.cfg.Timeouts.Runtime)
	defer cancel()
	if err := c.create(ctx, id, rt.path, info, options); err != nil {
		return fmt.Errorf("create sandbox %q: %w", id.Container, err)
	}
	return nil
}

func (c *Sandboxes) create(ctx context.Context, id task.ID, shim string, info sandbox.Sandbox, options sandbox.CreateOptions) error {
	if _, err := c.bundles.Load(id); !errdefs.IsNotFound(err) {
		if err == nil {
			err = fmt.Errorf("it exists: %w", errdefs.ErrAlreadyExists)
		}
		return err
	}
	var spec []byte
	if info.Spec != nil {
		spec = info.Spec.GetValue()
	}
	b, err := c.bundles.Create(id, spec, 0)
	if err != nil {
		return err
	}
	if err := c.start(ctx, b, shim, taskAny(info.Runtime.Options)); err != nil {
		return alsoFailed(err, c.remove(ctx, b))
	}
	req := &sandboxapi.CreateSandboxRequest{
		SandboxID: id.Container, BundlePath: b.Path, Rootfs: mount.ToProto(options.Rootfs),
		Options: anyOf(taskAny(options.Options)), NetnsPath: options.NetNSPath, Annotations: options.Annotations,
	}
	if err := c.call(ctx, id, "CreateSandbox", req, &sandboxapi.CreateSandboxResponse{}); err != nil {
		return alsoFailed(err, c.end(ctx, b))
	}
	return nil
}

// start runs the shim's "start" and notes where it listens.
func (c *Sandboxes) start(ctx context.Context, b *bundle.Bundle, shim string, options task.Any) error {
	if err := b.WriteFile(bundle.ShimFile, []byte(shim), 0o600); err != nil {
		return err
	}
	if err := c.openLog(b); err != nil {
		return err
	}
	params, err := c.s.bootstrapParams(b.ID.Namespace, b.ID.Container, options)
	if err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, c.s.cfg.Timeouts.startShim())
	defer cancel()
	out, err := c.s.execute(sctx, invocation{
		path: shim, ns: b.ID.Namespace, id: b.ID.Container, action: "start", dir: b.Path, env: c.s.cfg.ShimEnv,
	}, params)
	if err != nil {
		return err
	}
	result, err := parseBootstrap(out)
	if err != nil {
		return fmt.Errorf("shim %s: %w", shim, err)
	}
	return writeBootstrap(b, result)
}

// endpoint says where a sandbox's shim listens; NotFound where there is no such
// sandbox.
func (c *Sandboxes) endpoint(id task.ID) (*bootapi.BootstrapResult, error) {
	b, err := c.bundles.Load(id)
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", id.Container, err)
	}
	result, err := readBootstrap(b)
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", id.Container, err)
	}
	return result, nil
}

// call passes a call to the sandbox's shim. A shim that is gone is Unavailable.
func (c *Sandboxes) call(ctx context.Context, id task.ID, method string, req, resp proto.Message) error {
	return c.callService(ctx, id, sandboxService, method, req, resp)
}

func (c *Sandboxes) callService(ctx context.Context, id task.ID, service, method string, req, resp proto.Message) error {
	result, err := c.endpoint(id)
	if err != nil {
		return err
	}
	dctx, cancel := context.WithTimeout(ctx, c.s.cfg.Timeouts.Connect)
	defer cancel()
	cn, err := connect(dctx, result, c.s.cfg.Timeouts.Connect)
	if err != nil {
		return fmt.Errorf("shim of sandbox %q cannot be reached: %w: %w", id.Container, err, errdefs.ErrUnavailable)
	}
	defer cn.close()
	if err := cn.call(ctx, service, method, req, resp); err != nil {
		if cn.broken(err) {
			return fmt.Errorf("shim of sandbox %q ended over the call %s: %w", id.Container, method, errdefs.ErrUnavailable)
		}
		return fmt.Errorf("sandbox %q: %w", id.Container, errgrpc.ToNative(err))
	}
	return nil
}

// end has the shim end itself, and removes what is left. A shim that cannot be
// reached any more does not keep its sandbox from going.
func (c *Sandboxes) end(ctx context.Context, b *bundle.Bundle) error {
	err := c.callBounded(ctx, b.ID, "ShutdownSandbox", &sandboxapi.ShutdownSandboxRequest{SandboxID: b.ID.Container}, &sandboxapi.ShutdownSandboxResponse{})
	if err != nil && !errdefs.IsUnavailable(err) && !errdefs.IsNotFound(err) && !errdefs.IsNotImplemented(err) {
		return err
	}
	return c.remove(ctx, b)
}

// remove ends the shim as one of tasks is ended: it may serve the sandbox API
// and go on without a sandbox. Its "delete" command and its bundle follow.
func (c *Sandboxes) remove(ctx context.Context, b *bundle.Bundle) error {
	sctx, cancel := context.WithTimeout(ctx, c.s.cfg.Timeouts.Shutdown)
	defer cancel()
	// Most have ended by now, and some serve no tasks.
	_ = c.callService(sctx, b.ID, taskMethod(3), "Shutdown", &taskapi.ShutdownRequest{ID: b.ID.Container}, &emptypb.Empty{})
	path, err := b.ReadFile(bundle.ShimFile, maxPath)
	if err == nil {
		dctx, cancel := context.WithTimeout(ctx, c.s.cfg.Timeouts.Cleanup)
		defer cancel()
		if _, err := c.s.execute(dctx, invocation{
			path: string(path), ns: b.ID.Namespace, id: b.ID.Container, action: "delete", dir: b.Path, bundle: b.Path,
		}, nil); err != nil {
			c.s.cfg.Log.Warn("shim of a sandbox did not clean up", "sandbox", b.ID.String(), "error", err)
		}
	}
	c.mu.Lock()
	if logs := c.logs[b.ID]; logs != nil {
		logs.Close()
		delete(c.logs, b.ID)
	}
	c.mu.Unlock()
	return b.Delete()
}

// callBounded is call with a bound for what a runtime has to do.
func (c *Sandboxes) callBounded(ctx context.Context, id task.ID, method string, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, c.s.cfg.Timeouts.Runtime)
	defer cancel()
	return c.call(ctx, id, method, req, resp)
}

// Shutdown ends the sandbox, its tasks and its shim.
func (c *Sandboxes) Shutdown(ctx context.Context, name string) error {
	id, err := sandboxID(ctx, name)
	if err != nil {
		return err
	}
	free, err := c.take(id)
	if err != nil {
		return err
	}
	defer free()
	b, err := c.bundles.Load(id)
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.s.cfg.Timeouts.Runtime+time.Minute)
	defer cancel()
	return c.end(ctx, b)
}
