package main

import (
	"context"
	"encoding/json"
	"os/exec"
	"sort"
	"sync"
	"syscall"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	taskTypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
)

// TestOperations holds every cell of the life-cycle table, and what else is
// promised of every Runner, against the shim's socket: version 3 of the
// service over runc, version 2 over the fake runtime, which has checkpoints.
func TestOperations(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("v3 runc", func(t *testing.T) {
		tasktest.Run(t, func(t *testing.T) tasktest.Harness {
			return realRemote{newRemote(t, "containerd.task.v3.Task", runc)}
		})
	})
	t.Run("v2 fake", func(t *testing.T) {
		tasktest.Run(t, func(t *testing.T) tasktest.Harness {
			return fakeRemote{newRemote(t, "containerd.task.v2.Task", faketest.Binary(t))}
		})
	})
}

// remote is a task.Runner at the other end of a shim's socket.
type remote struct {
	*daemon
	shim    *served
	service string
	options *anypb.Any

	mu  sync.Mutex
	ids map[string]bool // created and not deleted; guarded by mu
}

type (
	realRemote struct{ *remote }
	fakeRemote struct{ *remote }
)

func (realRemote) HasStats() bool             { return true }
func (fakeRemote) Image(t *testing.T) string  { return faketest.Image(t) }
func (r *remote) Runner() task.Runner         { return r }
func (r *remote) Namespace() string           { return "ns" }
func (r *remote) Events() []task.Event        { return r.daemon.taskEvents() }
func (r *remote) id(container string) task.ID { return task.ID{Namespace: "ns", Container: container} }

func (r *remote) task(container string) remoteTask {
	return remoteTask{remoteProcess{r, container, ""}}
}

// newRemote starts a shim, which ends with the test, by Shutdown.
func newRemote(t *testing.T, service, runtime string) *remote {
	t.Helper()
	d := newDaemon(t)
	return d.remote(d.start(d.bundle("hold", "", nil)), service, runtime)
}

func (d *daemon) remote(s *served, service, runtime string) *remote {
	t := d.t
	t.Helper()
	r := &remote{daemon: d, shim: s, service: service, ids: map[string]bool{}}
	var err error
	r.options, err = typeurl.MarshalAnyToProto(&options.Options{BinaryName: runtime, Root: r.shim.root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.shim.must("Shutdown", &taskAPI.ShutdownRequest{}, &emptypb.Empty{})
		r.shim.ended()
	})
	return r
}

func (r *remote) Config(t *testing.T, id, script string) task.CreateConfig {
	t.Helper()
	return task.CreateConfig{Bundle: r.bundle(id, script, nil)}
}

func (r *remote) Exec(t *testing.T, script string) task.ExecConfig {
	t.Helper()
	data, err := json.Marshal(faketest.Process("/bin/sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	return task.ExecConfig{Spec: data}
}

// ask is a call of the service under test.
func (r *remote) ask(ctx context.Context, method string, req, resp proto.Message) error {
	return errgrpc.ToNative(r.shim.Call(ctx, r.service, method, req, resp))
}

func (r *remote) do(ctx context.Context, method string, req proto.Message) error {
	return r.ask(ctx, method, req, &emptypb.Empty{})
}

func (r *remote) Create(ctx context.Context, id task.ID, cfg task.CreateConfig) (task.Task, error) {
	req := &taskAPI.CreateTaskRequest{
		ID: id.Container, Bundle: cfg.Bundle, Options: r.options, Checkpoint: cfg.Checkpoint,
		Stdin: cfg.Stdio.Stdin, Stdout: cfg.Stdio.Stdout, Stderr: cfg.Stdio.Stderr,
	}
	if r.rootfs != "" {
		req.Rootfs = []*types.Mount{{Type: "bind", Source: r.rootfs, Options: []string{"rbind"}}}
	}
	err := r.ask(ctx, "Create", req, &taskAPI.CreateTaskResponse{})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[id.Container] = true
	return r.task(id.Container), nil
}

func (r *remote) Get(ctx context.Context, id task.ID) (task.Task, error) {
	t := r.task(id.Container)
	_, err := t.State(ctx)
	return t, err
}

// List is not a call of shims.
func (r *remote) List(_ context.Context, namespace string) ([]task.Task, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []task.Task
	for id := range r.ids {
		if namespace == "ns" {
			list = append(list, r.task(id))
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].ID().Container < list[j].ID().Container })
	return list, nil
}

type remoteProcess struct {
	*remote
	container, exec string
}

type remoteTask struct{ remoteProcess }

func (p remoteProcess) ID() task.ID    { return p.id(p.container) }
func (p remoteProcess) ExecID() string { return p.exec }

var statusOf = map[taskTypes.Status]task.Status{
	taskTypes.Status_CREATED: task.Created, taskTypes.Status_RUNNING: task.Running, taskTypes.Status_STOPPED: task.Stopped,
	taskTypes.Status_PAUSED: task.Paused, taskTypes.Status_PAUSING: task.Pausing,
}

func (p remoteProcess) State(ctx context.Context) (task.State, error) {
	var r taskAPI.StateResponse
	err := p.ask(ctx, "State", &taskAPI.StateRequest{ID: p.container, ExecID: p.exec}, &r)
	st := task.State{ID: p.ID(), ExecID: p.exec, Pid: r.Pid, Status: statusOf[r.Status]}
	if st.Status == task.Stopped {
		st.Exit = &task.Exit{Pid: r.Pid, Status: r.ExitStatus, At: r.ExitedAt.AsTime()}
	}
	return st, err
}

func (p remoteProcess) Start(ctx context.Context) (uint32, error) {
	var r taskAPI.StartResponse
	err := p.ask(ctx, "Start", &taskAPI.StartRequest{ID: p.container, ExecID: p.exec}, &r)
	return r.Pid, err
}

func (p remoteProcess) Kill(ctx context.Context, sig syscall.Signal, all bool) error {
	return p.do(ctx, "Kill", &taskAPI.KillRequest{ID: p.container, ExecID: p.exec, Signal: uint32(sig), All: all})
}

func (p remoteProcess) Resize(ctx context.Context, size task.ConsoleSize) error {
	return p.do(ctx, "ResizePty", &taskAPI.ResizePtyRequest{
		ID: p.container, ExecID: p.exec, Width: uint32(size.Width), Height: uint32(size.Height),
	})
}

func (p remoteProcess) CloseStdin(ctx context.Context) error {
	return p.do(ctx, "CloseIO", &taskAPI.CloseIORequest{ID: p.container, ExecID: p.exec, Stdin: true})
}

func (p remoteProcess) Wait(ctx context.Context) (task.Exit, error) {
	var r taskAPI.WaitResponse
	err := p.ask(ctx, "Wait", &taskAPI.WaitRequest{ID: p.container, ExecID: p.exec}, &r)
	return task.Exit{Status: r.ExitStatus, At: r.ExitedAt.AsTime()}, err
}

func (p remoteProcess) Delete(ctx context.Context) (task.Exit, error) {
	var r taskAPI.DeleteResponse
	err := p.ask(ctx, "Delete", &taskAPI.DeleteRequest{ID: p.container, ExecID: p.exec}, &r)
	if err == nil && p.exec == "" {
		p.remote.mu.Lock()
		delete(p.ids, p.container)
		p.remote.mu.Unlock()
	}
	return task.Exit{Pid: r.Pid, Status: r.ExitStatus, At: r.ExitedAt.AsTime()}, err
}

func (t remoteTask) Pause(ctx context.Context) error {
	return t.do(ctx, "Pause", &taskAPI.PauseRequest{ID: t.container})
}

func (t remoteTask) Resume(ctx context.Context) error {
	return t.do(ctx, "Resume", &taskAPI.ResumeRequest{ID: t.container})
}

func (t remoteTask) Update(ctx context.Context, resources task.Any, annotations map[string]string) error {
	return t.do(ctx, "Update", &taskAPI.UpdateTaskRequest{
		ID: t.container, Resources: &anypb.Any{TypeUrl: resources.TypeURL, Value: resources.Value}, Annotations: annotations,
	})
}

func (t remoteTask) Checkpoint(ctx context.Context, cfg task.CheckpointConfig) error {
	return t.do(ctx, "Checkpoint", &taskAPI.CheckpointTaskRequest{ID: t.container, Path: cfg.Path})
}

func (t remoteTask) Exec(ctx context.Context, id string, cfg task.ExecConfig) (task.Process, error) {
	err := t.do(ctx, "Exec", &taskAPI.ExecProcessRequest{
		ID: t.container, ExecID: id, Spec: &anypb.Any{Value: cfg.Spec}, Stdout: cfg.Stdio.Stdout,
	})
	return remoteProcess{t.remote, t.container, id}, err
}

func (t remoteTask) Process(ctx context.Context, id string) (task.Process, error) {
	p := remoteProcess{t.remote, t.container, id}
	_, err := p.State(ctx)
	if errdefs.IsNotFound(err) {
		return nil, err
	}
	return p, err
}

func (t remoteTask) Pids(ctx context.Context) ([]task.ProcessInfo, error) {
	var r taskAPI.PidsResponse
	err := t.ask(ctx, "Pids", &taskAPI.PidsRequest{ID: t.container}, &r)
	list := make([]task.ProcessInfo, 0, len(r.Processes))
	for _, p := range r.Processes {
		list = append(list, task.ProcessInfo{Pid: p.Pid})
	}
	return list, err
}

func (t remoteTask) Stats(ctx context.Context) (task.Any, error) {
	var r taskAPI.StatsResponse
	err := t.ask(ctx, "Stats", &taskAPI.StatsRequest{ID: t.container}, &r)
	return task.Any{TypeURL: r.Stats.GetTypeUrl(), Value: r.Stats.GetValue()}, err
}
