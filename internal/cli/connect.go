package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berthd/berth/internal/cli/autostart"
	"github.com/berthd/berth/internal/cli/runspec"
)

const defaultAddress = "/run/berth/berth.sock"

// cleanupTime bounds what is done to take away the traces of a command that
// failed or was interrupted.
const cleanupTime = 20 * time.Second

// session is a connection to the daemon.
type session struct {
	*App
	global
	client *containerd.Client
	// background are calls that the answer does not wait for; close does.
	background sync.WaitGroup
}

// connect reaches the daemon and returns the context for calls to it. The
// caller closes the session.
func (a *App) connect(ctx context.Context, cmd *cli.Command) (context.Context, *session, error) {
	g := globals(cmd)
	if err := checkNamespace(g.namespace); err != nil {
		return nil, nil, err
	}
	address := strings.TrimPrefix(g.address, "unix://")
	conn, err := dial(ctx, address, g.connectTimeout)
	if !g.addressGiven && absent(err) {
		if g.debug {
			a.warnf("nothing listens on %s: starting berthd", address)
		}
		if err = autostart.Start(ctx, autostart.Config{Address: address}); err != nil {
			return nil, nil, err
		}
		conn, err = dial(ctx, address, g.connectTimeout)
	}
	if err != nil {
		return nil, nil, dialError(address, err)
	}
	client, err := newClient(address, conn, g.connectTimeout)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("daemon at %s: %w", address, err)
	}
	return namespaces.WithNamespace(ctx, g.namespace), &session{App: a, global: g, client: client}, nil
}

func (s *session) close() {
	s.background.Wait()
	_ = s.client.Close()
}

// with connects, runs fn with the context bounded by --timeout, and closes.
func (a *App) with(ctx context.Context, cmd *cli.Command, fn func(context.Context, *session) error) error {
	ctx, s, err := a.connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer s.close()
	if s.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.timeout)
		defer cancel()
	}
	return fn(ctx, s)
}

// cleanup is a context for taking things away: a signal or a deadline that
// ended the command does not count for it.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
}

func dial(ctx context.Context, address string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	return d.DialContext(ctx, "unix", address)
}

// absent says that nobody listens: no socket, or one that its daemon left.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func dialError(address string, err error) error {
	switch {
	case absent(err):
		return say(errdefs.ErrUnavailable, "daemon at %s: nothing listens there (start it: berthd --address %s, or give another --address)", address, address)
	case errors.Is(err, fs.ErrPermission):
		return say(errdefs.ErrPermissionDenied, "daemon at %s: permission denied (run as root, or as a member of the socket's group)", address)
	case os.IsTimeout(err):
		return say(errdefs.ErrUnavailable, "daemon at %s: it does not accept the connection (is it hung? see --connect-timeout)", address)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Errorf("daemon at %s: %w", address, err)
}

// newClient makes a client whose first connection is conn.
func newClient(address string, conn net.Conn, timeout time.Duration) (*containerd.Client, error) {
	var first atomic.Pointer[net.Conn]
	first.Store(&conn)
	retry := backoff.DefaultConfig
	retry.MaxDelay = time.Second
	return containerd.New(address, containerd.WithTimeout(timeout), containerd.WithDialOpts([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: timeout}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if c := first.Swap(nil); c != nil {
				return *c, nil
			}
			return dial(ctx, address, timeout)
		}),
	}))
}

// checkNamespace refuses what the daemon would refuse in many words.
func checkNamespace(ns string) error {
	if err := runspec.CheckID(ns); err != nil {
		return fmt.Errorf("invalid namespace %q (use letters and digits, with single '.', '-' or '_' between them)", ns)
	}
	return nil
}
