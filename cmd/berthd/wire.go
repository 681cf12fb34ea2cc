package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/internal/version"
)

const (
	// stopTimeout is how long calls in progress get to end.
	stopTimeout = 10 * time.Second
	// giveUpTimeout is how long they get to notice that they were cancelled.
	giveUpTimeout = 5 * time.Second
)

// serve runs the daemon until a signal stops it.
//
// The order is: signals, so that a stop is heard at any time; the engine, which
// locks root and state; the socket; then word to systemd. Tasks of before are
// taken up in the background meanwhile.
func serve(ctx context.Context, cfg *config) (err error) {
	log, err := newLog(os.Stderr, cfg.Log)
	if err != nil {
		return usageError{err}
	}
	for _, text := range cfg.warnings {
		log.Warn("configuration: " + text)
	}
	if err := prepareProcess(cfg, log); err != nil {
		return err
	}
	registerProcessors(cfg.StreamProcessors)
	systemd, err := newNotifier()
	if err != nil {
		return err
	}
	signals := listenForSignals(log)
	defer signals.close()

	e, err := engine.Open(ctx, cfg.engineConfig(log))
	if err != nil {
		return err
	}
	api := &listeners{ended: make(chan error, 2)}
	defer func() {
		if cerr := closeEngine(e); cerr != nil {
			err = errors.Join(err, cerr)
		} else {
			err = errors.Join(err, api.wait())
		}
	}()
	pidFile, err := writePidFile(cfg.State)
	if err != nil {
		return err
	}
	// Before the engine lets go of the directory: a successor writes its own.
	defer func() { err = errors.Join(err, os.Remove(pidFile)) }()
	debug, err := serveDebug(cfg.Debug.Address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, debug.close()) }()

	listener, err := e.Listen(cfg.GRPC.UID, cfg.GRPC.GID)
	if err != nil {
		return err
	}
	api.serve(e, listener)
	if cfg.TCP.Address != "" {
		remote, err := e.ListenTLS(engine.TLSConfig{
			Address: cfg.TCP.Address, CA: cfg.TCP.CA, Cert: cfg.TCP.Cert, Key: cfg.TCP.Key, CommonName: cfg.TCP.CommonName,
		})
		if err != nil {
			return err
		}
		api.serve(e, remote)
		log.Info("berthd serves clients with certificates", slog.String("address", remote.Addr().String()))
	}
	built := version.Get()
	log.Info("berthd serves", slog.String("address", e.Address()), slog.String("root", cfg.Root), slog.String("state", cfg.State),
		slog.String("version", built.Version), slog.String("revision", built.Revision), slog.Int("pid", os.Getpid()))
	if err := systemd.tell("READY=1"); err != nil {
		log.Warn("systemd does not hear that berthd is ready", slog.Any("error", err))
	}

	select {
	case err = <-api.ended:
		return fmt.Errorf("the API is not served any more: %w", err)
	case sig := <-signals.stop:
		log.Info("berthd stops; containers go on", slog.String("signal", sig.String()))
	}
	if err := systemd.tell("STOPPING=1"); err != nil {
		log.Warn("systemd does not hear that berthd stops", slog.Any("error", err))
	}
	return nil
}

// listeners are what the API is served on.
type listeners struct {
	ended   chan error // gets the error of one that ends before the engine
	running sync.WaitGroup

	mu  sync.Mutex
	err error // of all that have ended; guarded by mu
}

// serve serves until the engine is closed.
func (l *listeners) serve(e *engine.Engine, from net.Listener) {
	l.running.Go(func() {
		err := e.Serve(from)
		l.mu.Lock()
		l.err = errors.Join(l.err, err)
		l.mu.Unlock()
		l.ended <- err
	})
}

// wait returns when all have ended.
func (l *listeners) wait() error {
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// closeEngine stops the engine, or gives up: what is on disk is good at any
// moment.
func closeEngine(e *engine.Engine) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- e.Close(ctx) }()
	select {
	case err := <-closed:
		return err
	case <-time.After(stopTimeout + giveUpTimeout):
		return fmt.Errorf("calls in progress did not end within %v", stopTimeout+giveUpTimeout)
	}
}

// writePidFile writes the pid for scripts; the daemon itself does not rely on
// it. The state directory is ours by then.
func writePidFile(state string) (string, error) {
	path := filepath.Join(state, "berthd.pid")
	if err := os.WriteFile(path+".new", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("write pid file: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("write pid file: %w", err)
	}
	return path, nil
}
