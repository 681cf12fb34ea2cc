package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	taskTypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/berthd/berth/internal/faketask"
	"github.com/berthd/berth/task"
)

// versions are the names under which the service is offered.
var versions = []string{"containerd.task.v3.Task", "containerd.task.v2.Task"}

// client calls one version of the service.
type client struct {
	t       *testing.T
	rpc     *ttrpc.Client
	version string
}

// call returns the error with its class.
func (c *client) call(method string, req, resp proto.Message) error {
	c.t.Helper()
	return errgrpc.ToNative(c.rpc.Call(timeout(c.t), c.version, method, req, resp))
}

func (c *client) must(method string, req, resp proto.Message) {
	c.t.Helper()
	if err := c.call(method, req, resp); err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
}

// serveRunner offers the runner over a socket as a shim does.
func serveRunner(t *testing.T, r task.Runner, shutdown func()) (path string, log *logBuffer) {
	t.Helper()
	log = &logBuffer{}
	s := &server{conns: &connections{}, cfg: ServeConfig{Log: log.logger()}, trim: time.NewTimer(time.Hour)}
	srv := newServer(t, ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()), ttrpc.WithUnaryServerInterceptor(s.intercept))
	(&service{runner: r, namespace: "ns", shutdown: shutdown}).register(srv)
	path = filepath.Join(socketDir(t), "s")
	serveRPC(t, path, srv)
	return path, log
}

// eachVersion runs the test over a runner of its own for each version.
func eachVersion(t *testing.T, r func() task.Runner, test func(t *testing.T, c *client)) {
	t.Helper()
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			path, _ := serveRunner(t, r(), func() {})
			test(t, &client{t, dial(t, path), version})
		})
	}
}

func newFake() task.Runner { return &faketask.Runner{} }

// A container's life, as a daemon asks for it.
func TestServiceLife(t *testing.T) {
	eachVersion(t, newFake, func(t *testing.T, c *client) {
		var created taskAPI.CreateTaskResponse
		c.must("Create", &taskAPI.CreateTaskRequest{ID: "c", Bundle: "/b", Stdin: "/in", Stdout: "/out", Terminal: true}, &created)
		if created.Pid == 0 {
			t.Error("no pid")
		}
		checkState(c, &taskAPI.StateResponse{ID: "c", Pid: created.Pid, Status: taskTypes.Status_CREATED, Stdin: "/in", Stdout: "/out", Terminal: true})
		var begun taskAPI.StartResponse
		c.must("Start", &taskAPI.StartRequest{ID: "c"}, &begun)
		if begun.Pid != created.Pid {
			t.Errorf("pid %d, then %d", created.Pid, begun.Pid)
		}
		execLife(c)
		waited := make(chan error, 1)
		var exit taskAPI.WaitResponse
		go func() { waited <- c.call("Wait", &taskAPI.WaitRequest{ID: "c"}, &exit) }()
		c.must("Kill", &taskAPI.KillRequest{ID: "c", Signal: 9, All: true}, &emptypb.Empty{})
		if err := <-waited; err != nil || exit.ExitStatus != 137 || exit.ExitedAt == nil {
			t.Errorf("waited for %v, %v", &exit, err)
		}
		checkState(c, &taskAPI.StateResponse{
			ID: "c", Pid: created.Pid, Status: taskTypes.Status_STOPPED, Stdin: "/in", Stdout: "/out", Terminal: true,
			ExitStatus: 137, ExitedAt: exit.ExitedAt,
		})
		var deleted taskAPI.DeleteResponse
		c.must("Delete", &taskAPI.DeleteRequest{ID: "c"}, &deleted)
		want := &taskAPI.DeleteResponse{Pid: created.Pid, ExitStatus: 137, ExitedAt: exit.ExitedAt}
		if !proto.Equal(&deleted, want) {
			t.Errorf("deleted %v, want %v", &deleted, want)
		}
		if err := c.call("State", &taskAPI.StateRequest{ID: "c"}, &taskAPI.StateResponse{}); !errdefs.IsNotFound(err) {
			t.Errorf("state of a deleted container: %v", err)
		}
	})
}

func checkState(c *client, want *taskAPI.StateResponse) {
	c.t.Helper()
	got := &taskAPI.StateResponse{}
	c.must("State", &taskAPI.StateRequest{ID: "c", ExecID: want.ExecID}, got)
	want.ExecID = ""
	if !proto.Equal(got, want) {
		c.t.Errorf("state %v\nwant  %v", got, want)
	}
}

// execLife is the life of a process added to container c.
func execLife(c *client) {
	c.t.Helper()
	c.must("Exec", &taskAPI.ExecProcessRequest{ID: "c", ExecID: "e", Stdout: "/eout", Spec: &anypb.Any{Value: []byte("{}")}}, &emptypb.Empty{})
	if err := c.call("Exec", &taskAPI.ExecProcessRequest{ID: "c", ExecID: "e"}, &emptypb.Empty{}); !errdefs.IsAlreadyExists(err) {
		c.t.Errorf("a taken exec id: %v", err)
	}
	if err := c.call("Exec", &taskAPI.ExecProcessRequest{ID: "c"}, &emptypb.Empty{}); !errdefs.IsInvalidArgument(err) {
		c.t.Errorf("no exec id: %v", err)
	}
	var begun taskAPI.StartResponse
	c.must("Start", &taskAPI.StartRequest{ID: "c", ExecID: "e"}, &begun)
	checkState(c, &taskAPI.StateResponse{ID: "e", ExecID: "e", Pid: begun.Pid, Status: taskTypes.Status_RUNNING, Stdout: "/eout"})
	checkPids(c, begun.Pid)
	c.must("Kill", &taskAPI.KillRequest{ID: "c", ExecID: "e", Signal: 15}, &emptypb.Empty{})
	var exit taskAPI.WaitResponse
	c.must("Wait", &taskAPI.WaitRequest{ID: "c", ExecID: "e"}, &exit)
	var deleted taskAPI.DeleteResponse
	c.must("Delete", &taskAPI.DeleteRequest{ID: "c", ExecID: "e"}, &deleted)
	if exit.ExitStatus != 143 || deleted.ExitStatus != 143 || deleted.Pid != begun.Pid {
		c.t.Errorf("exec: waited %v, deleted %v", &exit, &deleted)
	}
	if err := c.call("Start", &taskAPI.StartRequest{ID: "c", ExecID: "e"}, &begun); !errdefs.IsNotFound(err) {
		c.t.Errorf("start of a deleted exec: %v", err)
	}
}

func checkPids(c *client, exec uint32) {
	c.t.Helper()
	var pids taskAPI.PidsResponse
	c.must("Pids", &taskAPI.PidsRequest{ID: "c"}, &pids)
	if len(pids.Processes) != 2 || pids.Processes[0].Info != nil || pids.Processes[1].Pid != exec {
		c.t.Fatalf("processes %v", pids.Processes)
	}
	details, err := typeurl.UnmarshalAny(pids.Processes[1].Info)
	if d, ok := details.(*options.ProcessDetails); err != nil || !ok || d.ExecID != "e" {
		c.t.Errorf("details %v, %v", details, err)
	}
}

func TestServicePauseUpdateStats(t *testing.T) {
	eachVersion(t, newFake, func(t *testing.T, c *client) {
		c.must("Create", &taskAPI.CreateTaskRequest{ID: "c", Bundle: "/b"}, &taskAPI.CreateTaskResponse{})
		if err := c.call("Pause", &taskAPI.PauseRequest{ID: "c"}, &emptypb.Empty{}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("pause before the start: %v", err)
		}
		c.must("Start", &taskAPI.StartRequest{ID: "c"}, &taskAPI.StartResponse{})
		c.must("Pause", &taskAPI.PauseRequest{ID: "c"}, &emptypb.Empty{})
		var st taskAPI.StateResponse
		c.must("State", &taskAPI.StateRequest{ID: "c"}, &st)
		if st.Status != taskTypes.Status_PAUSED {
			t.Errorf("paused: %v", st.Status)
		}
		c.must("Resume", &taskAPI.ResumeRequest{ID: "c"}, &emptypb.Empty{})
		c.must("Update", &taskAPI.UpdateTaskRequest{ID: "c", Resources: &anypb.Any{Value: []byte("{}")}}, &emptypb.Empty{})
		c.must("Checkpoint", &taskAPI.CheckpointTaskRequest{ID: "c", Path: "/p"}, &emptypb.Empty{})
		var stats taskAPI.StatsResponse
		c.must("Stats", &taskAPI.StatsRequest{ID: "c"}, &stats)
		if stats.Stats.TypeUrl != "fake.Stats" || string(stats.Stats.Value) != "c" {
			t.Errorf("stats %v", stats.Stats)
		}
	})
}

// Connect answers whoever asks; Shutdown asks for the end.
func TestServiceConnectAndShutdown(t *testing.T) {
	for _, version := range versions {
		asked := make(chan struct{}, 1)
		path, _ := serveRunner(t, newFake(), func() { asked <- struct{}{} })
		c := &client{t, dial(t, path), version}
		var resp taskAPI.ConnectResponse
		c.must("Connect", &taskAPI.ConnectRequest{ID: "nobody"}, &resp)
		if resp.ShimPid != uint32(os.Getpid()) || resp.TaskPid != 0 {
			t.Errorf("%v", &resp)
		}
		var created taskAPI.CreateTaskResponse
		c.must("Create", &taskAPI.CreateTaskRequest{ID: "c"}, &created)
		c.must("Connect", &taskAPI.ConnectRequest{ID: "c"}, &resp)
		if resp.TaskPid != created.Pid {
			t.Errorf("%v, want pid %d", &resp, created.Pid)
		}
		c.must("Shutdown", &taskAPI.ShutdownRequest{ID: "c"}, &emptypb.Empty{})
		select {
		case <-asked:
		default:
			t.Error("the end was not asked for")
		}
	}
}

// An unknown container is NotFound in every call that names one.
func TestServiceUnknownContainer(t *testing.T) {
	eachVersion(t, newFake, func(t *testing.T, c *client) {
		for method, req := range map[string]proto.Message{
			"State": &taskAPI.StateRequest{ID: "x"}, "Start": &taskAPI.StartRequest{ID: "x"}, "Delete": &taskAPI.DeleteRequest{ID: "x"},
			"Pids": &taskAPI.PidsRequest{ID: "x"}, "Pause": &taskAPI.PauseRequest{ID: "x"}, "Resume": &taskAPI.ResumeRequest{ID: "x"},
			"Checkpoint": &taskAPI.CheckpointTaskRequest{ID: "x"}, "Kill": &taskAPI.KillRequest{ID: "x"},
			"Exec": &taskAPI.ExecProcessRequest{ID: "x", ExecID: "e"}, "ResizePty": &taskAPI.ResizePtyRequest{ID: "x"},
			"CloseIO": &taskAPI.CloseIORequest{ID: "x"}, "Update": &taskAPI.UpdateTaskRequest{ID: "x"},
			"Wait": &taskAPI.WaitRequest{ID: "x", ExecID: "e"}, "Stats": &taskAPI.StatsRequest{ID: "x"},
		} {
			if err := c.call(method, req, &emptypb.Empty{}); !errdefs.IsNotFound(err) {
				t.Errorf("%s: %v", method, err)
			}
		}
	})
}

// An error keeps its class and its text across the wire, in one line.
func TestServiceErrors(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition,
		errdefs.ErrUnavailable, errdefs.ErrNotImplemented, errdefs.ErrInternal, context.DeadlineExceeded,
	} {
		r := &faketask.Runner{OnCreate: func(task.CreateConfig) error {
			return errors.Join(fmt.Errorf("runc said:\nfirst: %w", class), errors.New("and the cleanup failed"))
		}}
		eachVersion(t, func() task.Runner { return r }, func(t *testing.T, c *client) {
			err := c.call("Create", &taskAPI.CreateTaskRequest{ID: "c"}, &taskAPI.CreateTaskResponse{})
			if !errors.Is(err, class) {
				t.Errorf("%v became %v", class, err)
			}
			text := err.Error()
			if strings.Contains(text, "\n") || !strings.Contains(text, "runc said:; first") || !strings.Contains(text, "cleanup failed") {
				t.Errorf("%q", text)
			}
		})
	}
}

func TestServiceRefusals(t *testing.T) {
	eachVersion(t, newFake, func(t *testing.T, c *client) {
		c.must("Create", &taskAPI.CreateTaskRequest{ID: "c", Stdin: "/in"}, &taskAPI.CreateTaskResponse{})
		for name, call := range map[string]struct {
			method string
			req    proto.Message
		}{
			"signal": {"Kill", &taskAPI.KillRequest{ID: "c", Signal: 65}},
			"huge":   {"Kill", &taskAPI.KillRequest{ID: "c", Signal: 1<<32 - 1}},
			"width":  {"ResizePty", &taskAPI.ResizePtyRequest{ID: "c", Width: 1 << 16}},
			"height": {"ResizePty", &taskAPI.ResizePtyRequest{ID: "c", Height: 1 << 31}},
			// The same field of the message, but no text.
			"garbage": {"State", wrapperspb.Bytes([]byte{0xff})},
		} {
			if err := c.call(call.method, call.req, &emptypb.Empty{}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		c.must("ResizePty", &taskAPI.ResizePtyRequest{ID: "c", Width: 1<<16 - 1, Height: 1}, &emptypb.Empty{})
		// stdin=false asks for nothing.
		for _, stdin := range []bool{false, true} {
			c.must("CloseIO", &taskAPI.CloseIORequest{ID: "c", Stdin: stdin}, &emptypb.Empty{})
			var st taskAPI.StateResponse
			c.must("State", &taskAPI.StateRequest{ID: "c"}, &st)
			if (st.Stdin == "") != stdin {
				t.Errorf("stdin=%v left %q", stdin, st.Stdin)
			}
		}
	})
}

// What a daemon sends of a create reaches the runner.
func TestServiceCreateConfig(t *testing.T) {
	var mu sync.Mutex
	var got task.CreateConfig
	r := &faketask.Runner{OnCreate: func(c task.CreateConfig) error {
		mu.Lock()
		defer mu.Unlock()
		got = c
		return errdefs.ErrUnavailable
	}}
	path, _ := serveRunner(t, r, func() {})
	c := &client{t, dial(t, path), versions[0]}
	err := c.call("Create", &taskAPI.CreateTaskRequest{
		ID: "c", Bundle: "/b", Checkpoint: "/ckpt", Stderr: "/err",
		Rootfs:  []*types.Mount{{Type: "bind", Source: "/src", Target: "sub", Options: []string{"ro"}}},
		Options: &anypb.Any{TypeUrl: "some.Options", Value: []byte("v")},
	}, &taskAPI.CreateTaskResponse{})
	if !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got.Bundle != "/b" || got.Checkpoint != "/ckpt" || got.Stdio.Stderr != "/err" ||
		got.Options.TypeURL != "some.Options" || string(got.Options.Value) != "v" {
		t.Errorf("%+v", got)
	}
	if len(got.Rootfs) != 1 || got.Rootfs[0].Target != "sub" || !slices.Equal(got.Rootfs[0].Options, []string{"ro"}) {
		t.Errorf("mounts %+v", got.Rootfs)
	}
}

// A call that panics fails alone: the connection and the other calls go on.
func TestServicePanic(t *testing.T) {
	r := &faketask.Runner{OnCreate: func(c task.CreateConfig) error {
		if c.Bundle == "/bad" {
			panic("no such luck")
		}
		return nil
	}}
	path, log := serveRunner(t, r, func() {})
	for _, version := range versions {
		c := &client{t, dial(t, path), version}
		err := c.call("Create", &taskAPI.CreateTaskRequest{ID: "bad", Bundle: "/bad"}, &taskAPI.CreateTaskResponse{})
		if !errdefs.IsInternal(err) || !strings.Contains(err.Error(), version+"/Create") || !strings.Contains(err.Error(), "no such luck") {
			t.Errorf("%v", err)
		}
		c.must("Create", &taskAPI.CreateTaskRequest{ID: version, Bundle: "/good"}, &taskAPI.CreateTaskResponse{})
	}
	if text := log.String(); strings.Count(text, "panic in a call") != 2 || !strings.Contains(text, "service_test.go") {
		t.Errorf("the log does not tell where:\n%s", text)
	}
}
