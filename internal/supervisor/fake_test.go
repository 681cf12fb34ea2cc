package supervisor

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The fake shim is this test's binary under another name:
// containerd-shim-fake<mode>-v1. It keeps tasks in memory and runs nothing. The
// mode says what "start" prints and how it serves.
const fakePrefix = "containerd-shim-fake"

// fakeShim returns the path of a fake shim.
func fakeShim(t testing.TB, mode string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(binaries.dir, fakePrefix+mode+"-v1")
	if err := os.Link(self, path); err != nil && !os.IsExist(err) {
		data, rerr := os.ReadFile(self) // another file system
		if rerr != nil || os.WriteFile(path, data, 0o755) != nil {
			t.Fatal(err, rerr)
		}
	}
	return path
}

func fakeMode() (string, bool) {
	name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), fakePrefix)
	return strings.TrimSuffix(name, "-v1"), ok
}

func runFake(mode string) int {
	var err error
	switch action := os.Args[len(os.Args)-1]; action {
	case "start":
		err = fakeStart(mode)
	case "serve":
		err = fakeServe(mode, os.NewFile(3, "socket"))
	case "guard":
		err = fakeGuard()
	case "delete":
		err = fakeDelete(mode)
	case "-info":
		err = write(&types.RuntimeInfo{Name: "fake"})
	default:
		err = fmt.Errorf("unknown action %q", action)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func write(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	return err
}

func fakeStart(mode string) error {
	params := &bootapi.BootstrapParams{}
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(data, params); err != nil {
		return err
	}
	if len(params.Extensions) != 1 || string(params.Extensions[0].Value.Value) != "opaque" {
		return fmt.Errorf("the options did not arrive: %v", params)
	}
	switch mode {
	case "fails":
		return fmt.Errorf("the fake cannot start: no reason")
	case "silent":
		return nil
	case "garbage":
		_, err := os.Stdout.Write([]byte("\xff\xfe not an address"))
		return err
	case "huge":
		_, err := os.Stdout.Write(bytes.Repeat([]byte("x"), 2*maxBootstrap))
		return err
	case "version9":
		return write(&bootapi.BootstrapResult{Version: 9, Address: "unix:///x", Protocol: "ttrpc"})
	case "nobody":
		return write(&bootapi.BootstrapResult{Version: 3, Address: "unix:///nonexistent/socket", Protocol: "ttrpc"})
	case "hangs":
		return exec.Command("sleep", "1000").Run() // a child of its process group
	}
	path := filepath.Join(params.GetSocketDir(), "fake-"+params.InstanceID)
	if err := serveBehind(path); err != nil {
		return err
	}
	return printResult(mode, "unix://"+path)
}

func printResult(mode, address string) error {
	var err error
	switch mode {
	case "json":
		_, err = fmt.Printf(`{"version":2,"address":%q,"protocol":"ttrpc"}`+"\n", address)
	case "bare":
		_, err = fmt.Println(address)
	case "grpc":
		err = write(&bootapi.BootstrapResult{Version: 3, Address: strings.TrimPrefix(address, "unix://"), Protocol: "grpc"})
	case "noise":
		fmt.Fprintln(os.Stderr, strings.Repeat("noise\n", 10000))
		fallthrough
	default:
		r := &bootapi.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"}
		if err := r.AddExtension(&types.MountCapabilities{Types: []string{"ext4"}}); err != nil {
			return err
		}
		err = write(r)
	}
	return err
}

// serveBehind starts the server process. As careless shims do, it keeps the
// stderr of "start" open.
func serveBehind(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", path, "serve")
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd.Start()
}

func fakeServe(mode string, socket *os.File) error {
	l, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	svc := &fakeTasks{tasks: map[string]*fakeTask{}, end: func() {
		os.Remove(os.Args[1])
		os.Exit(0)
	}}
	switch mode {
	case "grpc":
		srv := grpc.NewServer()
		taskapi.RegisterTaskServer(srv, svc)
		return srv.Serve(l)
	case "json", "bare", "claims3":
		return serveTTRPC(l, svc, 2)
	}
	return serveTTRPC(l, svc, 3)
}

func serveTTRPC(l net.Listener, svc *fakeTasks, version int32) error {
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	if version == 3 {
		taskapi.RegisterTTRPCTaskService(srv, svc)
	} else {
		srv.RegisterService(taskMethod(2), &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
			"State": method(svc.State), "Create": method(svc.Create), "Start": method(svc.Start),
			"Delete": method(svc.Delete), "Kill": method(svc.Kill), "Wait": method(svc.Wait),
			"Connect": method(svc.Connect), "Shutdown": method(svc.Shutdown),
		}})
	}
	return srv.Serve(context.Background(), l)
}

func method[Req, Resp any](f func(context.Context, *Req) (*Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := new(Req)
		if err := unmarshal(req); err != nil {
			return nil, err
		}
		return f(ctx, req)
	}
}

func fakeDelete(mode string) error {
	if mode == "undeletable" {
		if _, err := os.Stat("may-go"); err != nil {
			return fmt.Errorf("the fake cannot delete: no reason")
		}
	}
	return write(&taskapi.DeleteResponse{Pid: 4242, ExitStatus: 99, ExitedAt: timestamppb.Now()})
}

// fakeGuard is guard and shim of Berth's kind in one.
func fakeGuard() error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	params := &bootapi.BootstrapParams{}
	if err := proto.Unmarshal(data, params); err != nil {
		return err
	}
	path := filepath.Join(params.GetSocketDir(), "fake-"+params.InstanceID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	me, _ := identify(os.Getpid())
	for _, name := range []string{"guard.pid", "shim.pid"} {
		if err := os.WriteFile(name, fmt.Appendf(nil, "%d %s\n", me.pid, me.start), 0o600); err != nil {
			return err
		}
	}
	if err := printResult("", "unix://"+path); err != nil {
		return err
	}
	os.Stdout.Close()
	svc := &fakeTasks{tasks: map[string]*fakeTask{}}
	svc.empty = func() {
		time.AfterFunc(20*time.Millisecond, func() {
			if svc.count() == 0 {
				os.Remove(path)
				os.Exit(0)
			}
		})
	}
	return serveTTRPC(l, svc, 3)
}

// fakeTasks is the Task service.
type fakeTasks struct {
	taskapi.UnimplementedTaskServer
	end, empty func()

	mu    sync.Mutex
	tasks map[string]*fakeTask // guarded by mu
}

type fakeTask struct {
	status tasktypes.Status
	bundle string
	exited chan struct{}
	at     *timestamppb.Timestamp
}

func (s *fakeTasks) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tasks)
}

// with runs f on a task. s.mu is held.
func (s *fakeTasks) with(id string, f func(*fakeTask)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil {
		f(t)
		return nil
	}
	return errgrpc.ToGRPC(fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound))
}

func (s *fakeTasks) Create(_ context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	if strings.Contains(r.ID, "refused") {
		return nil, errgrpc.ToGRPC(fmt.Errorf("OCI runtime create failed: %w", errdefs.ErrInvalidArgument))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[r.ID] = &fakeTask{status: tasktypes.Status_CREATED, bundle: r.Bundle, exited: make(chan struct{})}
	return &taskapi.CreateTaskResponse{Pid: 4242}, nil
}

func (s *fakeTasks) Start(_ context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	return &taskapi.StartResponse{Pid: 4242}, s.with(r.ID, func(t *fakeTask) { t.status = tasktypes.Status_RUNNING })
}

func (s *fakeTasks) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	resp := &taskapi.StateResponse{ID: r.ID, Pid: 4242}
	return resp, s.with(r.ID, func(t *fakeTask) {
		resp.Status, resp.Bundle = t.status, t.bundle
		if t.at != nil {
			resp.ExitStatus, resp.ExitedAt = 77, t.at
		}
	})
}

func (s *fakeTasks) Kill(_ context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.with(r.ID, func(t *fakeTask) {
		if t.at == nil {
			t.status, t.at = tasktypes.Status_STOPPED, timestamppb.Now()
			close(t.exited)
		}
	})
}

func (s *fakeTasks) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	var task *fakeTask
	if err := s.with(r.ID, func(t *fakeTask) { task = t }); err != nil {
		return nil, err
	}
	select {
	case <-task.exited:
		return &taskapi.WaitResponse{ExitStatus: 77, ExitedAt: task.at}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *fakeTasks) Delete(_ context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	resp := &taskapi.DeleteResponse{Pid: 4242}
	err := s.with(r.ID, func(t *fakeTask) {
		delete(s.tasks, r.ID)
		if t.at != nil {
			resp.ExitStatus, resp.ExitedAt = 77, t.at
		}
	})
	if err == nil && s.empty != nil && s.count() == 0 {
		s.empty()
	}
	return resp, err
}

func (s *fakeTasks) Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}, nil
}

func (s *fakeTasks) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if s.end != nil && s.count() == 0 {
		time.AfterFunc(time.Millisecond, s.end)
	}
	return &emptypb.Empty{}, nil
}
