package supervisor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
)

// foreignCalls bounds the calls in flight to a foreign shim.
const foreignCalls = 64

// foreign is the shim of one task, by another maker. It owns the keeper of
// the connection.
type foreign struct {
	t    *Task
	path string // the binary
	// cancel closes the connection for good.
	cancel context.CancelFunc
	logs   *os.File
	// joined: the shim is a sandbox's, which decides when it ends.
	joined bool

	// Used by the keeper's goroutine alone.
	result    *bootapi.BootstrapResult
	deafSince time.Time

	mu     sync.Mutex
	shim   identity // zero while unknown. Guarded by mu
	exited bool     // the exit was published. Guarded by mu
}

// startForeign executes the shim's "start" and connects.
func (t *Task) startForeign(ctx context.Context, path string, opts task.Any) error {
	if err := t.bundle.WriteFile(bundle.ShimFile, []byte(path), 0o600); err != nil {
		return err
	}
	f := &foreign{t: t, path: path}
	if err := f.openLog(); err != nil {
		return err
	}
	t.foreign = f
	params, err := t.s.bootstrapParams(t.id.Namespace, t.id.Container, opts)
	if err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, t.s.cfg.Timeouts.startShim())
	defer cancel()
	out, err := t.s.execute(sctx, invocation{
		path: path, ns: t.id.Namespace, id: t.id.Container, action: "start", dir: t.bundle.Path, env: t.s.cfg.ShimEnv,
	}, params)
	if err != nil {
		return err
	}
	result, err := parseBootstrap(out)
	if err != nil {
		return fmt.Errorf("shim %s: %w", path, err)
	}
	return f.join(ctx, result)
}

// join connects to a shim that runs, and records how.
func (f *foreign) join(ctx context.Context, result *bootapi.BootstrapResult) error {
	if err := writeBootstrap(f.t.bundle, result); err != nil {
		return err
	}
	f.result = result
	first, err := f.dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to the shim of %s: %w", f.t.id, err)
	}
	f.keep(first)
	return nil
}

// keep starts the keeper; first may be nil.
func (f *foreign) keep(first *conn) {
	s := f.t.s
	var ctx context.Context
	ctx, f.cancel = context.WithCancel(s.ctx)
	f.t.keeper = newKeeper("the shim of "+f.t.id.String(), f, f.result.Version, foreignCalls)
	f.t.keeper.proven = f.result.Protocol == protocolGRPC // has no version 2
	// The caller is a work, so that the supervisor does not close yet.
	s.loops.Go(func() { f.t.keeper.run(ctx, first) })
}

func (f *foreign) openLog() error {
	logs, err := f.t.bundle.OpenLog()
	if err != nil {
		return err
	}
	f.logs = logs
	log := f.t.s.cfg.Log.With("namespace", f.t.id.Namespace, "shim", f.t.id.Container)
	f.t.s.loops.Go(func() { copyLog(log, logs) })
	return nil
}

// greet learns the pid of the shim, a second proof of its death.
func (f *foreign) greet(ctx context.Context) error {
	resp := &taskapi.ConnectResponse{}
	err := f.t.keeper.call(ctx, f.t.s.calls.connect, &taskapi.ConnectRequest{ID: f.t.id.Container}, resp)
	if err != nil {
		return err
	}
	if id, ok := identify(int(resp.ShimPid)); ok {
		f.mu.Lock()
		f.shim = id
		f.mu.Unlock()
	}
	return nil
}

func (f *foreign) dial(ctx context.Context) (*conn, error) {
	limit := f.t.s.cfg.Timeouts.Connect
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return connect(ctx, f.result, limit)
}

// dead: no one listens, or the process is gone. A process that still exists
// while its socket does not is about to end; if it does not, it is of no use to
// anybody, and is ended.
func (f *foreign) dead(err error) bool {
	f.mu.Lock()
	shim := f.shim
	f.mu.Unlock()
	alive := shim.alive()
	if !nobodyListens(err) {
		f.deafSince = time.Time{}
		return shim != (identity{}) && !alive
	}
	if !alive {
		return true
	}
	if f.deafSince.IsZero() {
		f.deafSince = time.Now()
	}
	if time.Since(f.deafSince) < f.t.s.cfg.Timeouts.Load {
		return false
	}
	if err := shim.kill(); err != nil {
		f.t.s.cfg.Log.Warn("shim without a socket cannot be ended", "task", f.t.id.String(), "error", err)
	}
	return true
}

func (f *foreign) revive(context.Context) (bool, error) { return false, nil }

func (f *foreign) end(dead bool) {
	f.logs.Close()
	if dead {
		f.t.buryLater()
	}
}

// dismiss ends a shim whose task is deleted: it is asked to end, the
// connection is closed, and its "delete" command removes what is left. The
// task is gone already, so that failures are of no interest to the caller.
func (f *foreign) dismiss(ctx context.Context) {
	s := f.t.s
	if f.t.keeper != nil && !f.joined {
		req := &taskapi.ShutdownRequest{ID: f.t.id.Container}
		if err := f.t.keeper.call(ctx, s.calls.shutdown, req, &emptypb.Empty{}); err != nil && !errors.Is(err, errDead) && !errors.Is(err, errInterrupted) {
			s.cfg.Log.Warn("shim was not shut down", "task", f.t.id.String(), "error", err)
		}
	}
	f.disconnect()
	if _, err := f.runDelete(ctx); err != nil {
		s.cfg.Log.Warn("shim did not clean up", "task", f.t.id.String(), "error", err)
	}
}

func (f *foreign) disconnect() {
	if f.cancel != nil {
		f.cancel()
	} else {
		f.logs.Close()
	}
}

// runDelete executes the shim's "delete".
func (f *foreign) runDelete(ctx context.Context) (*taskapi.DeleteResponse, error) {
	s := f.t.s
	select {
	case s.cleaners <- struct{}{}:
		defer func() { <-s.cleaners }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Cleanup)
	defer cancel()
	out, err := s.execute(ctx, invocation{
		path: f.path, ns: f.t.id.Namespace, id: f.t.id.Container, action: "delete", dir: f.t.bundle.Path, bundle: f.t.bundle.Path,
	}, nil)
	if err != nil {
		return nil, err
	}
	resp := &taskapi.DeleteResponse{}
	if err := proto.Unmarshal(out, resp); err != nil {
		return nil, fmt.Errorf("shim %s delete: its answer cannot be read: %w", f.path, err)
	}
	return resp, nil
}

// publishExit publishes the container's exit, once.
func (f *foreign) publishExit(exit task.Exit) {
	f.mu.Lock()
	exited := f.exited
	f.exited = true
	f.mu.Unlock()
	if exited {
		return
	}
	f.t.s.publish(f.t.id.Namespace, "/tasks/exit", &eventsapi.TaskExit{
		ContainerID: f.t.id.Container, ID: f.t.id.Container,
		Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At),
	})
}

// reported says that the exit was published.
func (f *foreign) reported() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.exited
}

// removeSockets removes the sockets that a shim left when it was killed. Their
// names are hashes of what the shim was started with; they are the shim's own
// unless it serves a group, whose next shim replaces them.
func (f *foreign) removeSockets() error {
	own := filepath.Join(f.t.s.cfg.Address, f.t.id.Namespace, f.t.id.Container)
	var errs []error
	for _, name := range []string{own, filepath.Join(own, "debug")} {
		path := filepath.Join(f.t.s.cfg.SocketDir, fmt.Sprintf("%x", sha256.Sum256([]byte(name))))
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			continue
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
