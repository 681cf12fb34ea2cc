package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/ttrpc"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/events"
	"github.com/berthd/berth/internal/restart"
	"github.com/berthd/berth/internal/storage"
	"github.com/berthd/berth/task"
)

// runtime is the half that runs containers.
type runtime interface {
	task.Runner
	// Load takes up the tasks that an earlier engine left.
	Load(ctx context.Context) error
	PluginInfo(ctx context.Context, r *types.RuntimeRequest) (*types.RuntimeInfo, error)
	// Sandboxes controls sandboxes over shims that serve them.
	Sandboxes() sandbox.Controller
	// Close lets go of the shims, which go on.
	Close(ctx context.Context) error
}

// openRuntime makes the runtime of an engine.
type openRuntime func(ctx context.Context, cfg Config, mounts mount.Manager, exchange *events.Exchange) (runtime, error)

// Engine is an open root. The caller ends it with Close.
type Engine struct {
	cfg      Config
	store    *storage.Store
	exchange *events.Exchange
	runtime  runtime
	tasks    *api.Tasks
	about    *api.Introspection
	services api.Services
	server   *api.Server
	direct   *api.Direct
	pipe     *pipeListener
	monitor  *restart.Monitor

	// background ends with cancel; Close waits for it.
	background sync.WaitGroup
	cancel     context.CancelFunc
	loaded     chan struct{} // closed when the tasks of before are known

	// undo releases what Open took, last first. Close takes it under mu.
	mu   sync.Mutex
	undo []func(context.Context) error // guarded by mu
}

// Open opens a root and a state directory, creating them if need be. A
// directory that another process uses is a FailedPrecondition that names the
// process. When Open returns, the tasks that an earlier engine left are still
// being taken up; calls for one of them wait for it. Ctx is for the opening
// only.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	return open(ctx, cfg, openSupervisor)
}

func open(ctx context.Context, cfg Config, newRuntime openRuntime) (_ *Engine, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	e := &Engine{cfg: cfg, loaded: make(chan struct{}), pipe: newPipeListener()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open engine: %w", err), e.release(context.WithoutCancel(ctx)))
		}
	}()
	if err := e.lock(); err != nil {
		return nil, err
	}
	if err := e.openParts(ctx, newRuntime); err != nil {
		return nil, err
	}
	if err := e.makeServices(); err != nil {
		return nil, err
	}
	afterLoad, err := e.tasks.Reclaim()
	if err != nil {
		return nil, fmt.Errorf("remove old checkpoints: %w", err)
	}
	if err := e.serveShims(); err != nil {
		return nil, err
	}
	if err := e.makeMonitor(); err != nil {
		return nil, err
	}
	e.startBackground(context.WithoutCancel(ctx), afterLoad)
	return e, nil
}

// later adds to what Close does.
func (e *Engine) later(f func(context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.undo = append(e.undo, f)
}

// release undoes what Open did, last first, once.
func (e *Engine) release(ctx context.Context) error {
	e.mu.Lock()
	undo := e.undo
	e.undo = nil
	e.mu.Unlock()
	var errs []error
	for i := len(undo) - 1; i >= 0; i-- {
		errs = append(errs, undo[i](ctx))
	}
	return errors.Join(errs...)
}

func (e *Engine) lock() error {
	root, err := lockDir("root", e.cfg.Root, 0o700)
	if err != nil {
		return err
	}
	e.later(func(context.Context) error { return root.unlock() })
	state, err := lockDir("state", e.cfg.State, 0o711)
	if err != nil {
		return err
	}
	e.later(func(context.Context) error { return state.unlock() })
	return nil
}

func (e *Engine) openParts(ctx context.Context, newRuntime openRuntime) error {
	e.exchange = events.NewExchange(events.Config{QueueEvents: e.cfg.EventQueue})
	store, err := storage.Open(ctx, storage.Config{
		Root:                   e.cfg.Root,
		State:                  e.cfg.State,
		Publisher:              e.exchange,
		Snapshotter:            e.cfg.Snapshotter,
		Proxies:                e.cfg.Proxies,
		GC:                     e.cfg.GC,
		HostDir:                e.cfg.HostDir,
		MaxConcurrentDownloads: e.cfg.MaxConcurrentDownloads,
		MaxConcurrentUploads:   e.cfg.MaxConcurrentUploads,
		MaxConcurrentUnpacks:   e.cfg.MaxConcurrentUnpacks,
		Log:                    e.cfg.Log,
	})
	if err != nil {
		return err
	}
	e.store = store
	e.later(func(context.Context) error { return store.Close() })
	// Subscribers are told before the parts go that publish to them.
	e.later(func(context.Context) error {
		e.exchange.Close()
		return nil
	})
	if e.runtime, err = newRuntime(ctx, e.cfg, e.store.Mounts, e.exchange); err != nil {
		return err
	}
	e.later(e.runtime.Close)
	return nil
}

// serveShims listens for the events of shims.
func (e *Engine) serveShims() error {
	once, err := events.OpenOnce(filepath.Join(e.cfg.State, "forwarded"), e.exchange, e.cfg.Log)
	if err != nil {
		return err
	}
	e.later(func(context.Context) error { return once.Close() })
	srv, err := api.NewTTRPCServer(api.NewShimEvents(once), e.cfg.Log)
	if err != nil {
		return err
	}
	l, err := api.Listen(api.SocketConfig{Path: e.cfg.ttrpcAddress(), UID: e.cfg.SocketUID, GID: e.cfg.SocketGID})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	e.later(func(context.Context) error {
		// Shims queue what they could not send for whoever serves them next.
		err := srv.Close()
		if serr := <-served; !errors.Is(serr, ttrpc.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
	return nil
}

// makeMonitor makes what restarts containers; it is a client of the engine.
func (e *Engine) makeMonitor() error {
	c, err := e.Client()
	if err != nil {
		return err
	}
	e.later(func(context.Context) error { return c.Close() })
	e.monitor = restart.New(restart.Config{Client: c, Log: e.cfg.Log})
	return nil
}

// startBackground takes up the tasks, keeps containers running that ask for it,
// and serves the engine's own client.
func (e *Engine) startBackground(ctx context.Context, afterLoad func(context.Context) error) {
	ctx, e.cancel = context.WithCancel(ctx)
	e.background.Go(func() {
		defer close(e.loaded)
		if err := e.runtime.Load(ctx); err != nil {
			e.cfg.Log.Error("some tasks of before could not be taken up", slog.Any("error", err))
		}
		if err := afterLoad(ctx); err != nil {
			e.cfg.Log.Error("some old checkpoints could not be removed", slog.Any("error", err))
		}
	})
	e.background.Go(func() {
		<-e.loaded
		e.monitor.Run(ctx)
	})
	e.background.Go(func() {
		if err := e.server.Serve(e.pipe); err != nil {
			e.cfg.Log.Error("the in-process connection ended", slog.Any("error", err))
		}
	})
	e.later(func(ctx context.Context) error {
		e.server.Stop(ctx)
		e.cancel()
		e.background.Wait()
		return nil
	})
}

// Loaded is closed when the tasks that an earlier engine left are known.
func (e *Engine) Loaded() <-chan struct{} { return e.loaded }

// Address is the path of the API's socket, see [Config.Address].
func (e *Engine) Address() string { return e.cfg.Address }

// Serve answers API calls that come in through l until Close. It closes l.
// After Close it returns nil.
func (e *Engine) Serve(l net.Listener) error {
	return e.server.Serve(l)
}

// Listen makes the API's socket at Address, 0660 and owned by uid and gid. One
// that is there is replaced if nobody answers on it. The caller passes it to
// Serve, or closes it.
func (e *Engine) Listen(uid, gid int) (net.Listener, error) {
	return api.Listen(api.SocketConfig{Path: e.cfg.Address, UID: uid, GID: gid})
}

// TLSConfig describes a TCP address for clients with certificates.
type TLSConfig = api.TLSConfig

// ListenTLS listens on a TCP address with mutual TLS. The caller passes it to
// Serve, or closes it.
func (e *Engine) ListenTLS(cfg TLSConfig) (net.Listener, error) { return api.ListenTLS(cfg) }

// Close ends the engine and leaves its containers running. Calls in progress
// may end until ctx does; what is left then is cancelled. It waits for all that
// the engine started. Clients of the engine fail from here on. It is
// idempotent.
func (e *Engine) Close(ctx context.Context) error {
	if err := e.release(ctx); err != nil {
		return fmt.Errorf("close engine: %w", err)
	}
	return nil
}

// tempDir holds checkpoints on their way.
func (e *Engine) tempDir() string { return filepath.Join(e.cfg.Root, "tmp") }
