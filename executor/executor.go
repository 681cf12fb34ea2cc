package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/identity"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
)

// callTimeout bounds a call that makes or removes a part of a step. Such a call
// is not broken off when the step is cancelled: half a container would stay.
const callTimeout = 2 * time.Minute

// Executor runs build steps. It is BuildKit's executor.Executor.
type Executor struct {
	client *client.Client
	cfg    Config
	lock   *os.File

	// records are removed behind the steps that have ended; Close waits.
	records sync.WaitGroup

	mu     sync.Mutex
	closed bool             // guarded by mu
	steps  map[string]*step // guarded by mu
}

var _ executor.Executor = (*Executor)(nil)

// New makes an executor on a containerd client, whose daemon sees the same
// files as this process; the client stays the caller's and must outlive the
// executor. What steps of an earlier executor with this root left, because its
// process was killed, is removed first. The caller closes the executor.
//
// A root that another executor uses is a FailedPrecondition.
func New(c *client.Client, cfg Config) (_ *Executor, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return nil, fmt.Errorf("make executor: %w", err)
	}
	e := &Executor{client: c, cfg: cfg, steps: make(map[string]*step)}
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		return nil, fmt.Errorf("make executor: %w", err)
	}
	if e.lock, err = lockFile(filepath.Join(cfg.Root, "lock")); err != nil {
		return nil, fmt.Errorf("make executor: root %s: %w", cfg.Root, err)
	}
	ctx, cancel := e.callContext(context.Background())
	defer cancel()
	if err := e.recover(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("make executor: remove what steps of before left: %w", err), e.lock.Close())
	}
	return e, nil
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("another executor uses it (give this one another root): %w", errdefs.ErrFailedPrecondition)
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close waits until nothing is left of steps that have ended. Steps that run
// are the caller's to end first; new ones are refused.
func (e *Executor) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.records.Wait()
	e.mu.Lock()
	running := len(e.steps)
	e.mu.Unlock()
	err := e.lock.Close()
	if running > 0 {
		err = errors.Join(err, fmt.Errorf("close executor: %d steps still run: %w", running, errdefs.ErrFailedPrecondition))
	}
	return err
}

// callContext is for calls that are carried out whatever becomes of the step.
func (e *Executor) callContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = namespaces.WithNamespace(context.WithoutCancel(ctx), e.cfg.Namespace)
	return context.WithTimeout(ctx, callTimeout)
}

// Run runs a step to its end. Whatever ends it, nothing is left of it but what
// it wrote into its mounts. Started, if any, is closed when the step's program
// runs, or at the end. It closes process.Stdin.
//
// The error of a step that ended with a code which is not valid is an
// ExitError of BuildKit's gateway API. It wraps the context's cause when the
// step was cancelled, and ENOMEM when the kernel killed it for lack of memory.
// The recorder is complete: there is nothing to wait for.
func (e *Executor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (_ resourcestypes.Recorder, err error) {
	if id == "" {
		id = identity.NewID()
	}
	if process.Stdin != nil {
		defer process.Stdin.Close()
	}
	announce := sync.OnceFunc(func() {
		if started != nil {
			close(started)
		}
	})
	defer announce()
	if err := executor.ValidContainerID(id); err != nil {
		return nil, err
	}
	s, err := e.register(ctx, id)
	if err != nil {
		return nil, err
	}
	ctx = namespaces.WithNamespace(ctx, e.cfg.Namespace)
	defer func() {
		if uerr := s.undo.run(ctx); uerr != nil {
			err = errors.Join(err, fmt.Errorf("clean up after step %s: %w", id, uerr))
		}
		e.finish(s, err)
	}()
	if err := e.prepare(ctx, s, root, mounts, process.Meta); err != nil {
		return nil, err
	}
	return e.runStep(ctx, s, process, func() {
		trace.SpanFromContext(ctx).AddEvent("Container started")
		announce()
	})
}

// prepare makes all that the step's container needs. What it made is undone
// by s.undo, also when it fails.
func (e *Executor) prepare(ctx context.Context, s *step, root executor.Mount, mounts []executor.Mount, meta executor.Meta) error {
	s.dir = filepath.Join(e.cfg.Root, "steps", s.id)
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return fmt.Errorf("make directory of step %s: %w", s.id, err)
	}
	s.undo.add("directory", func(context.Context) error { return os.RemoveAll(s.dir) })
	net, err := e.openNetwork(ctx, meta)
	if err != nil {
		return fmt.Errorf("network of step %s: %w", s.id, err)
	}
	s.net = net
	s.undo.add("network", func(context.Context) error { return net.Close() })
	if err := e.mountRoot(ctx, s, root); err != nil {
		return fmt.Errorf("root file system of step %s: %w", s.id, err)
	}
	if meta.Env, err = useProxy(s, meta.Env); err != nil {
		return fmt.Errorf("proxy of step %s: %w", s.id, err)
	}
	return e.makeSpec(ctx, s, net, mounts, meta, root.Readonly)
}

// mountRoot mounts the step's root file system where this process sees it.
func (e *Executor) mountRoot(ctx context.Context, s *step, root executor.Mount) error {
	src, err := root.Src.Mount(ctx, false)
	if err != nil {
		return err
	}
	mounts, release, err := src.Mount()
	if err != nil {
		return err
	}
	if release != nil {
		s.undo.add("root mounts", func(context.Context) error { return release() })
	}
	path, err := e.mountAt(s, mounts)
	if err != nil {
		return err
	}
	if s.root, err = openRootfs(path); err != nil {
		return err
	}
	s.undo.add("root handle", func(context.Context) error { return s.root.close() })
	return nil
}

// mountAt mounts where the next executor finds it if this process is killed.
// What is a directory anyway needs no mount.
func (e *Executor) mountAt(s *step, mounts []mount.Mount) (string, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" && !slices.Contains(mounts[0].Options, "ro") {
		return mounts[0].Source, nil
	}
	path := filepath.Join(e.cfg.Root, "rootfs", s.id)
	if err := os.MkdirAll(path, 0o711); err != nil {
		return "", err
	}
	s.undo.add("root mount", func(context.Context) error { return unmountRoot(path) })
	return path, mount.All(mounts, path)
}

// unmountRoot never removes what is in a root file system.
func unmountRoot(path string) error {
	return errors.Join(mount.UnmountRecursive(path, unix.MNT_DETACH), os.Remove(path))
}

// recover removes what steps of a killed process left: containers, which bear
// the root as a label, and their directories.
func (e *Executor) recover(ctx context.Context) error {
	left, err := e.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q==%q", rootLabel, e.cfg.Root))
	if err != nil {
		return err
	}
	for _, c := range left {
		if err := e.killTask(ctx, c.ID); err != nil {
			return err
		}
		if err := e.removeRecord(ctx, c.ID); err != nil {
			return err
		}
	}
	roots, err := filepath.Glob(filepath.Join(e.cfg.Root, "rootfs", "*"))
	for _, path := range roots {
		err = errors.Join(err, unmountRoot(path))
	}
	return errors.Join(err,
		os.RemoveAll(filepath.Join(e.cfg.Root, "steps")),
		os.RemoveAll(filepath.Join(e.cfg.Root, "fifo")))
}
