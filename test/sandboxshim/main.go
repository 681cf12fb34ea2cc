// Command sandboxshim is a shim that serves sandboxes, for tests: it keeps one
// in memory and runs nothing. Annotation or option cannot make it do more; a
// sandbox whose id ends with "-bad" does not start.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func main() {
	id := flag.String("id", "", "of the sandbox")
	socket := flag.String("socket", "", "of the server")
	for _, name := range []string{"namespace", "address", "publish-binary", "bundle", "debug-socket"} {
		flag.String(name, "", "not used")
	}
	flag.Bool("debug", false, "not used")
	flag.Bool("info", false, "not used")
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "start":
		err = start(*id)
	case "delete":
		err = write(&taskapi.DeleteResponse{ExitedAt: timestamppb.Now(), ExitStatus: 137})
	case "serve":
		err = serve(*id, *socket)
	default:
		err = fmt.Errorf("unknown action %q", flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	return err
}

// start leaves a server behind and says where it listens.
func start(id string) error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var params bootapi.BootstrapParams
	if err := proto.Unmarshal(data, &params); err != nil {
		return err
	}
	if err := os.MkdirAll(params.GetSocketDir(), 0o700); err != nil {
		return err
	}
	socket := filepath.Join(params.GetSocketDir(), fmt.Sprintf("sb%d", os.Getpid()))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "-id", id, "-socket", socket, "-namespace", params.Namespace, "serve")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return write(&bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: "unix://" + socket})
}

func serve(id, socket string) error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	srv, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return err
	}
	s := &server{id: id, ended: make(chan struct{}), shutdown: make(chan struct{})}
	sandboxapi.RegisterTTRPCSandboxService(srv, s)
	go func() {
		<-s.shutdown
		time.Sleep(50 * time.Millisecond) // the answer is on its way
		os.Remove(socket)
		os.Exit(0)
	}()
	if err := srv.Serve(context.Background(), l); !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// server is one sandbox.
type server struct {
	id              string
	ended, shutdown chan struct{}

	mu      sync.Mutex
	bundle  string    // guarded by mu
	state   string    // guarded by mu
	exited  time.Time // guarded by mu
	updates int       // guarded by mu
}

var _ sandboxapi.TTRPCSandboxService = (*server)(nil)

// move changes the state if it is the one given.
func (s *server) move(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != from {
		return errgrpc.ToGRPC(fmt.Errorf("sandbox is %q, not %q: %w", s.state, from, errdefs.ErrFailedPrecondition))
	}
	s.state = to
	return nil
}

func (s *server) CreateSandbox(_ context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	if _, err := os.Stat(filepath.Join(r.BundlePath, "config.json")); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
	}
	s.mu.Lock()
	s.bundle = r.BundlePath
	s.mu.Unlock()
	return &sandboxapi.CreateSandboxResponse{}, s.move("", "created")
}

func (s *server) StartSandbox(context.Context, *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	if len(s.id) > 4 && s.id[len(s.id)-4:] == "-bad" {
		return nil, errgrpc.ToGRPC(fmt.Errorf("a bad sandbox does not start: %w", errdefs.ErrFailedPrecondition))
	}
	return &sandboxapi.StartSandboxResponse{Pid: uint32(os.Getpid()), CreatedAt: timestamppb.Now()}, s.move("created", "ready")
}

func (s *server) Platform(context.Context, *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: "riscv64"}}, nil
}

func (s *server) StopSandbox(context.Context, *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != "exited" {
		s.state, s.exited = "exited", time.Now()
		close(s.ended)
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

func (s *server) WaitSandbox(ctx context.Context, _ *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	select {
	case <-s.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &sandboxapi.WaitSandboxResponse{ExitStatus: 7, ExitedAt: timestamppb.New(s.exited)}, nil
}

func (s *server) SandboxStatus(_ context.Context, r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &sandboxapi.SandboxStatusResponse{SandboxID: s.id, Pid: uint32(os.Getpid()), State: s.state}
	if r.Verbose {
		resp.Info = map[string]string{"bundle": s.bundle, "updates": fmt.Sprint(s.updates)}
	}
	return resp, nil
}

func (s *server) PingSandbox(context.Context, *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	return &sandboxapi.PingResponse{}, nil
}

func (s *server) ShutdownSandbox(context.Context, *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != "gone" {
		s.state = "gone"
		close(s.shutdown)
	}
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

func (s *server) SandboxMetrics(context.Context, *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	return &sandboxapi.SandboxMetricsResponse{Metrics: &types.Metric{ID: s.id, Timestamp: timestamppb.Now()}}, nil
}

func (s *server) UpdateSandbox(context.Context, *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates++
	return &sandboxapi.UpdateSandboxResponse{}, nil
}
