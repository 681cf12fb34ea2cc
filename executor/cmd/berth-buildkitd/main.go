// Berth-buildkitd serves BuildKit's clients and runs their steps on Berth: with
// an engine of its own inside, or on a daemon that speaks containerd's API.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/sys"
	"github.com/moby/buildkit/util/tracing/detect"
	fscopy "github.com/tonistiigi/fsutil/copy"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/engine/shim"
	"github.com/berthd/berth/executor/worker"
)

func main() {
	if shim.Called() { // of the engine inside
		shim.Main()
	}
	// Builds say which modes their files have, and BuildKit counts on that.
	syscall.Umask(0)
	fscopy.UmaskIsZero = true
	detect.Recorder = detect.NewTraceRecorder() // BuildKit's build records need it
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := app().Run(ctx, os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "berth-buildkitd: %v\n", err)
		os.Exit(1)
	}
}

func app() *cli.Command {
	return &cli.Command{
		Name:        "berth-buildkitd",
		Usage:       "build images, with steps that run on Berth",
		HideVersion: true,
		Flags:       flags(),
		Action: func(ctx context.Context, c *cli.Command) error {
			s, err := settings(c)
			if err != nil {
				return err
			}
			return serve(ctx, s)
		},
	}
}

// serve builds until the context ends.
func serve(ctx context.Context, s *setup) (err error) {
	lock, err := takeRoot(s.root)
	if err != nil {
		return err
	}
	defer lock.Close()
	cl, closeClient, err := s.client(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeClient()) }()
	w, err := worker.New(context.WithoutCancel(ctx), cl, s.worker)
	if err != nil {
		return err
	}
	server, err := worker.NewServer(w, s.server)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	ended := make(chan error, len(s.addresses))
	for _, address := range s.addresses {
		l, err := listen(address, s.gid)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(l) }() // ends with server.Close
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// client connects to a daemon, or opens an engine.
func (s *setup) client(ctx context.Context) (*client.Client, func() error, error) {
	if s.containerd != "" {
		c, err := client.New(s.containerd, client.WithDefaultNamespace(s.worker.Executor.Namespace))
		if err != nil {
			return nil, nil, fmt.Errorf("connect to %s: %w", s.containerd, err)
		}
		return c, c.Close, nil
	}
	if s.engine.ShimBinary == "" {
		if err := os.MkdirAll(s.engine.State, 0o711); err != nil {
			return nil, nil, err
		}
		path, err := shim.Link(s.engine.State)
		if err != nil {
			return nil, nil, fmt.Errorf("make a shim of this program: %w", err)
		}
		s.engine.ShimBinary = path
	}
	e, err := engine.Open(ctx, s.engine)
	if err != nil {
		return nil, nil, err
	}
	c, err := e.Client()
	if err != nil {
		return nil, nil, errors.Join(err, e.Close(ctx))
	}
	return c, func() error { return errors.Join(c.Close(), e.Close(ctx)) }, nil
}

// listen makes the socket at an address such as unix:///run/x.sock, 0660.
func listen(address string, gid int) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("address %q is not unix:// and an absolute path", address)
	}
	l, err := sys.GetLocalListener(path, os.Geteuid(), gid)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
