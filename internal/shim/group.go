package shim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/internal/guard"
)

// Args are the flags that every action of the shim binary takes.
type Args struct {
	Namespace, ID, Address, PublishBinary, Bundle string
	Debug                                         bool
	Log                                           *slog.Logger
}

const (
	defaultSocketDir   = "/run/containerd/s"
	defaultRuntimeRoot = "/run/containerd/runc"
	// maxParams bounds what is read from the daemon.
	maxParams = 10 << 20
	// EnvLinger and EnvRuntimeRoot are how a guard configures its shim.
	EnvLinger      = "BERTH_SHIM_LINGER"
	EnvRuntimeRoot = "BERTH_RUNTIME_ROOT"
	EnvGroupDir    = "BERTH_GROUP_DIR"
	// EnvSocket is the socket that a shim without a guard removes when it ends.
	EnvSocket = "BERTH_SHIM_SOCKET"
)

// readParams reads the daemon's bootstrap message. Daemons before 2.3 send
// none, or the bare options of the runtime: they give nil.
func readParams(r io.Reader, a Args) (*bootstrap.BootstrapParams, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxParams+1))
	if err != nil {
		return nil, fmt.Errorf("bootstrap parameters: %w", err)
	}
	if len(data) > maxParams {
		return nil, fmt.Errorf("bootstrap parameters of more than %d bytes", maxParams)
	}
	p := &bootstrap.BootstrapParams{}
	if err := proto.Unmarshal(data, p); err != nil || p.InstanceID != a.ID || p.Namespace != a.Namespace {
		return nil, nil //nolint:nilerr // another kind of message is no error
	}
	return p, nil
}

// socketPath is the group's socket: the hash keeps it short whatever the names.
func socketPath(dir, address, namespace, group string) string {
	sum := sha256.Sum256([]byte(filepath.Join(address, namespace, group)))
	return filepath.Join(dir, hex.EncodeToString(sum[:]))
}

// errServed says that the group's socket is served by another process.
var errServed = errors.New("the group is served already")

// listen makes the group's socket in a directory that only its owner enters.
// A socket that nobody serves is replaced.
func listen(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if errors.Is(err, unix.EADDRINUSE) {
		// Only a refusal says that nobody listens: one who has much to do is
		// slow to take us.
		conn, derr := net.DialTimeout("unix", path, 100*time.Millisecond)
		if derr == nil {
			conn.Close()
		}
		if !errors.Is(derr, unix.ECONNREFUSED) && !errors.Is(derr, unix.ENOENT) {
			return nil, errServed
		}
		if rerr := remove(path); rerr != nil {
			return nil, fmt.Errorf("stale socket: %w", rerr)
		}
		l, err = net.ListenUnix("unix", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for the group: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

// remove takes a file away that may be gone.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// writeResult tells the address of the socket, to a daemon that sent no
// parameters in the form that all of them know.
func writeResult(w io.Writer, socket string, params *bootstrap.BootstrapParams) error {
	if params == nil {
		_, err := io.WriteString(w, "unix://"+socket)
		return err
	}
	data, err := proto.Marshal(&bootstrap.BootstrapResult{Version: 3, Address: "unix://" + socket, Protocol: "ttrpc"})
	if err != nil {
		return fmt.Errorf("encode the bootstrap result: %w", err)
	}
	_, err = w.Write(data)
	return err
}

// serveCommand is the serving process of the group. It runs this process's
// own image even if the file was replaced in the meantime.
func serveCommand(a Args) *exec.Cmd {
	args := []string{"-namespace", a.Namespace, "-id", a.ID, "-address", a.Address, "-publish-binary", a.PublishBinary}
	if a.Debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command("/proc/self/exe", append(args, "serve")...)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = os.Stderr
	return cmd
}

// RunGuard is the action "guard": it makes the group's socket, starts the shim
// and stays. The working directory is the group's. The result goes to out,
// which is closed once the shim serves.
func RunGuard(a Args, in io.Reader, out io.WriteCloser) error {
	params, err := readParams(in, a)
	if err != nil {
		return err
	}
	if err := shareNoCore(); err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	socketDir := params.GetSocketDir()
	if socketDir == "" {
		socketDir = defaultSocketDir
	}
	socket := socketPath(socketDir, a.Address, a.Namespace, a.ID)
	listener, err := listen(socket)
	if errors.Is(err, errServed) {
		return errors.Join(writeResult(out, socket, params), out.Close())
	}
	if err != nil {
		return err
	}
	// It is listened to until its name is gone: nobody takes it for stale.
	defer listener.Close()
	if err := openLog(dir); err != nil {
		return err
	}
	if err := WritePid(filepath.Join(dir, "guard.pid")); err != nil {
		return err
	}
	err = guard.Run(guard.Config{
		Listener: listener,
		Log:      a.Log,
		Command: func() *exec.Cmd {
			cmd := serveCommand(a)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(),
				EnvGroupDir+"="+dir,
				// <state>/io.containerd.berth.group/<namespace>/<group>
				EnvRuntimeRoot+"="+filepath.Join(dir, "..", "..", "..", "runc"))
			return cmd
		},
		OnServing: func() error { return errors.Join(writeResult(out, socket, params), out.Close()) },
	})
	return errors.Join(err, remove(socket))
}

// openLog makes the FIFO that the daemon reads our standard error. It is
// opened for reading too: a daemon that is away must not end us with SIGPIPE, nor
// a full FIFO stop us.
func openLog(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, "log"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // no one reads: stderr as it is
	}
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer unix.Close(fd)
	return unix.Dup3(fd, 2, 0)
}

// RunServe is the action "serve": the serving process. fd 3 is the listening
// socket, fd 4 the guard's where BERTH_GROUP_DIR is set.
func RunServe(ctx context.Context, a Args) error {
	unix.CloseOnExec(3)
	listener := os.NewFile(3, "listener")
	defer listener.Close()
	cfg := ServeConfig{
		Namespace: a.Namespace, Listener: listener, Socket: os.Getenv(EnvSocket), Dir: os.Getenv(EnvGroupDir),
		RuntimeRoot: os.Getenv(EnvRuntimeRoot), EventsAddress: os.Getenv("TTRPC_ADDRESS"),
		Linger: unclaimedLinger, SpecCheck: os.Getenv(EnvSpecCheck), Log: a.Log,
	}
	if cfg.RuntimeRoot == "" {
		cfg.RuntimeRoot = defaultRuntimeRoot
	}
	if cfg.EventsAddress == "" && a.Address != "" {
		cfg.EventsAddress = strings.TrimPrefix(a.Address, "unix://") + ".ttrpc"
	}
	if cfg.Dir != "" {
		unix.CloseOnExec(4)
		cfg.Guard = os.NewFile(4, "guard")
		cfg.Linger = DefaultLinger
	} else if err := openLog("."); err != nil { // the bundle of the group's first container
		return err
	}
	if text := os.Getenv(EnvLinger); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return fmt.Errorf("%s=%q is not a positive duration: %w", EnvLinger, text, errdefs.ErrInvalidArgument)
		}
		cfg.Linger = d
	}
	for _, name := range []string{EnvSocket, EnvGroupDir, EnvRuntimeRoot, EnvLinger, EnvSpecCheck, "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE"} {
		if err := os.Unsetenv(name); err != nil { // not the OCI runtime's business
			return err
		}
	}
	return Serve(ctx, cfg)
}
