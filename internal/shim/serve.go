package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/container"
	"github.com/berthd/berth/internal/guard"
	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/internal/stdio"
)

const (
	// DefaultLinger is how long a shim without containers waits for another.
	DefaultLinger = 10 * time.Second
	// unclaimedLinger is the same for a shim that Shutdown is to end.
	unclaimedLinger = time.Minute
	// firstLinger is the least for a shim that has had no container yet: it was
	// started for one, by a daemon that may be slow to send the request.
	firstLinger  = 2 * time.Second
	handoverTime = 10 * time.Second
	shutdownTime = 5 * time.Second
	// trimAfter is how long the shim is quiet before it gives memory back.
	trimAfter = 3 * time.Second
)

// ServeConfig describes the serving process of a group.
type ServeConfig struct {
	Namespace string
	// Listener is the group's listening socket; it stays the caller's. Socket is its
	// path, which Serve removes before it lets go; empty: its maker does.
	Listener *os.File
	Socket   string
	// Guard is the socket to the guard; nil without one. Serve closes it.
	Guard *os.File
	// Dir is the group's directory under a guard, where a successor finds what
	// it needs; empty without one.
	Dir string
	// RuntimeRoot is the parent of the OCI runtime's state directories.
	RuntimeRoot string
	// EventsAddress is the daemon's ttrpc socket.
	EventsAddress string
	// Linger: see DefaultLinger.
	Linger time.Duration
	// SpecCheck is the policy for what a runtime would ignore (EnvSpecCheck). It
	// is not used under a guard, whose daemon has checked already.
	SpecCheck string
	Log       *slog.Logger
}

// server is the shim at work.
type server struct {
	cfg    ServeConfig
	guard  *guard.Client // nil without
	reaper *reap.Reaper
	set    *container.Set
	late   *stdio.Watcher // of late readers
	events *publisher
	rpc    *ttrpc.Server
	conns  *connections
	trim   *time.Timer

	shutdownOnce sync.Once
	shutdownC    chan struct{} // closed: end when there are no containers
}

// Serve serves the group until it has had no containers for a while, and
// returns nil then: the guard is told not to start another shim.
func Serve(ctx context.Context, cfg ServeConfig) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	// Most of what a call allocates is garbage when it ends.
	debug.SetGCPercent(40)
	if cfg.Linger <= 0 {
		cfg.Linger = DefaultLinger
	}
	journal := ""
	if cfg.Dir != "" {
		journal = filepath.Join(cfg.Dir, "events")
	}
	s := &server{cfg: cfg, shutdownC: make(chan struct{}), events: newPublisher(cfg.EventsAddress, journal, cfg.Log)}
	defer tellStacks(cfg.Log)()
	s.trim = time.AfterFunc(trimAfter, debug.FreeOSMemory)
	defer s.trim.Stop()
	if err := s.open(ctx); err != nil {
		return errors.Join(err, s.closeEvents())
	}
	return s.run(ctx)
}

// open takes over from a predecessor, if there was one, before the first call
// is answered.
func (s *server) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handoverTime)
	defer cancel()
	var kept map[string]*os.File
	var ancestor reap.Ancestor
	var keeper stdio.Keeper
	var openFIFO func(string, int) (int, error)
	if s.cfg.Guard != nil {
		var err error
		if s.guard, kept, err = guard.Connect(ctx, s.cfg.Guard, s.cfg.Log); err != nil {
			return err
		}
		ancestor, keeper, openFIFO = s.guard, s.guard, s.openFIFO
	}
	reaper, err := reap.New(s.cfg.Log, ancestor)
	if err != nil {
		return err
	}
	s.reaper = reaper
	if s.late, err = stdio.NewWatcher(); err != nil {
		return err
	}
	members, err := s.prepareDir()
	if err != nil {
		return err
	}
	s.set, err = container.New(container.Config{
		Reaper: reaper, Ancestor: ancestor, Keeper: keeper, OpenFIFO: openFIFO, Watcher: s.late, Files: &stdio.Files{},
		Events: s.events, Members: members,
		RuntimeRoot: s.cfg.RuntimeRoot, DecodeOptions: decodeOptions, DecodeCheckpointOptions: decodeCheckpointOptions,
		Log: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	if err := s.set.Adopt(ctx, kept); err != nil {
		return err
	}
	if s.guard != nil {
		if err := s.guard.Adopted(); err != nil {
			s.cfg.Log.Warn("tell the guard that all is adopted", "error", err)
		}
	}
	s.events.settled()
	s.set.Release()
	return nil
}

// openFIFO is container.Config.OpenFIFO.
func (s *server) openFIFO(name string, fifo int) (int, error) {
	fd, ok, err := s.guard.OpenFIFO(name, fifo)
	if err == nil && !ok {
		err = errNoGuard
	}
	return fd, err
}

var errNoGuard = errors.New("the guard has not opened the FIFO")

// prepareDir writes who serves the group and makes the directory of its members.
func (s *server) prepareDir() (string, error) {
	if s.cfg.Dir == "" {
		return "", nil
	}
	if err := WritePid(filepath.Join(s.cfg.Dir, "shim.pid")); err != nil {
		return "", err
	}
	members := filepath.Join(s.cfg.Dir, "members")
	if err := os.Mkdir(members, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return members, nil
}

// WritePid writes the pid of this process and its start time, which together
// name it for as long as the machine runs.
func WritePid(path string) error {
	start, err := reap.StartTime(os.Getpid())
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%d %d\n", os.Getpid(), start), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func (s *server) run(ctx context.Context) error {
	listener, err := net.FileListener(s.cfg.Listener)
	if err != nil {
		return fmt.Errorf("listening socket: %w", err)
	}
	s.conns = &connections{check: ttrpc.UnixSocketRequireSameUser()}
	s.rpc, err = ttrpc.NewServer(
		ttrpc.WithServerHandshaker(s.conns),
		ttrpc.WithUnaryServerInterceptor(s.intercept),
	)
	if err != nil {
		return err
	}
	svc := &service{runner: s.set, namespace: s.cfg.Namespace, shutdown: s.requestShutdown}
	if s.guard == nil {
		if svc.admission, err = newAdmission(s.cfg.SpecCheck, s.reaper.Hold, s.cfg.Log); err != nil {
			return err
		}
	}
	svc.register(s.rpc)
	served := make(chan error, 1)
	go func() { served <- s.rpc.Serve(ctx, listener) }()
	if s.guard != nil {
		if err := s.guard.Serving(); err != nil {
			s.cfg.Log.Warn("tell the guard that the socket is served", "error", err)
		}
	}
	err = s.untilUnused(ctx, served)
	return errors.Join(err, s.close())
}

// intercept keeps a panic in one call from taking the group along, and gives
// memory back when calls stop coming.
func (s *server) intercept(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, m ttrpc.Method) (resp any, err error) {
	defer func() {
		s.conns.awaitEntered()
		s.trim.Reset(trimAfter)
		if p := recover(); p != nil {
			s.cfg.Log.Error("panic in a call", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
			err = errgrpc.ToGRPC(fmt.Errorf("%s: the shim failed: %v: %w", info.FullMethod, p, errdefs.ErrInternal))
		}
	}()
	return m(ctx, u)
}

func (s *server) requestShutdown() {
	s.shutdownOnce.Do(func() { close(s.shutdownC) })
}

// untilUnused returns when the group is empty and stays so, and no new
// container is let in any more.
func (s *server) untilUnused(ctx context.Context, served <-chan error) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(term)
	for {
		idle := s.set.Idle()
		select {
		case err := <-served:
			if err == nil {
				err = net.ErrClosed
			}
			return fmt.Errorf("serve the group's socket: %w", err)
		case sig := <-term:
			if s.set.CloseIfEmpty() {
				return nil
			}
			if hostEnds(ctx) {
				s.endContainers(ctx)
				return nil
			}
			s.cfg.Log.Info("a signal is not obeyed while there are containers", "signal", sig.(syscall.Signal))
		case <-idle:
			wait := s.cfg.Linger
			if !s.set.Used() && s.guard != nil {
				wait = max(wait, firstLinger)
			}
			told := s.linger(ctx, wait)
			if (told || s.set.Idle() == idle) && s.set.CloseIfEmpty() {
				return nil
			}
			// Not empty, or not all the time: linger anew.
		}
	}
}

// linger waits for d; told says that Shutdown, SIGTERM or ctx cut it short.
func (s *server) linger(ctx context.Context, d time.Duration) (told bool) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(term)
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case <-timeout.C:
		return false
	case <-s.shutdownC:
	case <-term:
	case <-ctx.Done():
	}
	return true
}

func (s *server) closeEvents() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	return s.events.Close(ctx)
}

// close ends the shim. The set is closed and empty: what is still asked gets Unavailable.
func (s *server) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	var err error
	if s.cfg.Socket != "" {
		// First: who comes now makes a socket of its own.
		err = remove(s.cfg.Socket)
	}
	err = errors.Join(err, s.set.Close(ctx))
	if everr := s.events.Close(ctx); everr != nil {
		s.cfg.Log.Warn("events at shutdown", "error", everr)
	}
	if s.guard != nil {
		err = errors.Join(err, s.guard.Bye())
	}
	if derr := s.conns.drain(ctx); derr != nil {
		s.cfg.Log.Warn("answers at shutdown", "error", derr)
	}
	if serr := s.rpc.Shutdown(ctx); serr != nil {
		err = errors.Join(err, s.rpc.Close())
	}
	if s.guard != nil {
		err = errors.Join(err, s.guard.Close())
	}
	return errors.Join(err, s.late.Close(), s.reaper.Close())
}
