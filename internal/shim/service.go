// Package shim offers a task.Runner as a containerd shim: the ttrpc Task
// service in both of its versions, the events that the daemon wants, and the
// actions of the shim binary. It translates; what happens is in
// internal/container.
package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/task"
)

// service is containerd.task.v2.Task and containerd.task.v3.Task: their
// messages have the same wire form.
type service struct {
	runner    task.Runner
	namespace string
	admission *admission
	// shutdown ends the shim if it has no containers.
	shutdown func()
}

// register adds both versions to the server.
func (s *service) register(srv *ttrpc.Server) {
	methods := map[string]ttrpc.Method{
		"State": method(s.State), "Create": method(s.Create), "Start": method(s.Start), "Delete": method(s.Delete),
		"Pids": method(s.Pids), "Pause": method(s.Pause), "Resume": method(s.Resume), "Checkpoint": method(s.Checkpoint),
		"Kill": method(s.Kill), "Exec": method(s.Exec), "ResizePty": method(s.ResizePty), "CloseIO": method(s.CloseIO),
		"Update": method(s.Update), "Wait": method(s.Wait), "Stats": method(s.Stats), "Connect": method(s.Connect),
		"Shutdown": method(s.Shutdown),
	}
	for _, name := range []string{"containerd.task.v3.Task", "containerd.task.v2.Task"} {
		srv.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
}

// method adapts a typed handler; errors leave with their class.
func method[Req, Resp any](fn func(context.Context, *Req) (*Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		req := new(Req)
		if err := unmarshal(req); err != nil {
			return nil, status.Error(codes.InvalidArgument, status.Convert(err).Message())
		}
		resp, err := fn(ctx, req)
		if err != nil {
			return nil, errgrpc.ToGRPC(oneLine(err))
		}
		return resp, nil
	}
}

// oneLine keeps an error's text and class and drops its tree, which would
// cross the wire as details and come out as lines of their own.
func oneLine(err error) error {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	class := errdefs.Resolve(err)
	if class == nil {
		return errors.New(text)
	}
	return flatError{text, class}
}

type flatError struct {
	text  string
	class error
}

func (e flatError) Error() string { return e.text }
func (e flatError) Unwrap() error { return e.class }

func (s *service) id(container string) task.ID {
	return task.ID{Namespace: s.namespace, Container: container}
}

func (s *service) task(ctx context.Context, container string) (task.Task, error) {
	return s.runner.Get(ctx, s.id(container))
}

func (s *service) process(ctx context.Context, container, exec string) (task.Process, error) {
	t, err := s.task(ctx, container)
	if err != nil || exec == "" {
		return t, err
	}
	return t.Process(ctx, exec)
}

func (s *service) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	cfg := task.CreateConfig{
		Bundle:     r.Bundle,
		Options:    fromAny(r.Options),
		Rootfs:     fromMounts(r.Rootfs),
		Stdio:      task.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Checkpoint: r.Checkpoint,
	}
	if err := s.admission.create(ctx, r.ID, cfg); err != nil {
		return nil, err
	}
	t, err := s.runner.Create(ctx, s.id(r.ID), cfg)
	if err != nil {
		return nil, err
	}
	st, err := t.State(ctx)
	if err != nil {
		return nil, err
	}
	return &taskAPI.CreateTaskResponse{Pid: st.Pid}, nil
}

func (s *service) Start(ctx context.Context, r *taskAPI.StartRequest) (*taskAPI.StartResponse, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	pid, err := p.Start(ctx)
	return &taskAPI.StartResponse{Pid: pid}, err
}

func (s *service) Delete(ctx context.Context, r *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	exit, err := p.Delete(ctx)
	return &taskAPI.DeleteResponse{Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: toTimestamp(exit.At)}, err
}

func (s *service) State(ctx context.Context, r *taskAPI.StateRequest) (*taskAPI.StateResponse, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st, err := p.State(ctx)
	if err != nil {
		return nil, err
	}
	// As stock shims answer: ID is the exec's where there is one.
	id := r.ID
	if r.ExecID != "" {
		id = r.ExecID
	}
	resp := &taskAPI.StateResponse{
		ID: id, Bundle: st.Bundle, Pid: st.Pid, Status: toStatus(st.Status),
		Stdin: st.Stdio.Stdin, Stdout: st.Stdio.Stdout, Stderr: st.Stdio.Stderr, Terminal: st.Stdio.Terminal,
	}
	if st.Exit != nil {
		resp.ExitStatus, resp.ExitedAt = st.Exit.Status, toTimestamp(st.Exit.At)
	}
	return resp, nil
}

func (s *service) Kill(ctx context.Context, r *taskAPI.KillRequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.Signal > 64 {
		return nil, fmt.Errorf("signal %d: %w", r.Signal, errdefs.ErrInvalidArgument)
	}
	return &emptypb.Empty{}, p.Kill(ctx, syscall.Signal(r.Signal), r.All)
}

func (s *service) Exec(ctx context.Context, r *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		return nil, fmt.Errorf("exec id cannot be empty: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.admission.exec(ctx, t, r.ExecID, r.Spec.GetValue()); err != nil {
		return nil, err
	}
	_, err = t.Exec(ctx, r.ExecID, task.ExecConfig{
		Spec:  r.Spec.GetValue(),
		Stdio: task.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	return &emptypb.Empty{}, err
}

func (s *service) ResizePty(ctx context.Context, r *taskAPI.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.Width > 1<<16-1 || r.Height > 1<<16-1 {
		return nil, fmt.Errorf("terminal size %dx%d: %w", r.Width, r.Height, errdefs.ErrInvalidArgument)
	}
	return &emptypb.Empty{}, p.Resize(ctx, task.ConsoleSize{Width: uint16(r.Width), Height: uint16(r.Height)})
}

func (s *service) CloseIO(ctx context.Context, r *taskAPI.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil || !r.Stdin {
		return &emptypb.Empty{}, err
	}
	return &emptypb.Empty{}, p.CloseStdin(ctx)
}

func (s *service) Wait(ctx context.Context, r *taskAPI.WaitRequest) (*taskAPI.WaitResponse, error) {
	p, err := s.process(ctx, r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	exit, err := p.Wait(ctx)
	return &taskAPI.WaitResponse{ExitStatus: exit.Status, ExitedAt: toTimestamp(exit.At)}, err
}

func (s *service) Pids(ctx context.Context, r *taskAPI.PidsRequest) (*taskAPI.PidsResponse, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	infos, err := t.Pids(ctx)
	if err != nil {
		return nil, err
	}
	resp := &taskAPI.PidsResponse{}
	for _, info := range infos {
		p := toProcessInfo(info.Pid)
		if info.ExecID != "" {
			details, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: info.ExecID})
			if err != nil {
				return nil, fmt.Errorf("encode the details of process %d: %w", info.Pid, err)
			}
			p.Info = details
		}
		resp.Processes = append(resp.Processes, p)
	}
	return resp, nil
}

func (s *service) Pause(ctx context.Context, r *taskAPI.PauseRequest) (*emptypb.Empty, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.Pause(ctx)
}

func (s *service) Resume(ctx context.Context, r *taskAPI.ResumeRequest) (*emptypb.Empty, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.Resume(ctx)
}

func (s *service) Checkpoint(ctx context.Context, r *taskAPI.CheckpointTaskRequest) (*emptypb.Empty, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.Checkpoint(ctx, task.CheckpointConfig{Path: r.Path, Options: fromAny(r.Options)})
}

func (s *service) Update(ctx context.Context, r *taskAPI.UpdateTaskRequest) (*emptypb.Empty, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if err := s.admission.update(ctx, t, r.Resources.GetValue()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, t.Update(ctx, fromAny(r.Resources), r.Annotations)
}

func (s *service) Stats(ctx context.Context, r *taskAPI.StatsRequest) (*taskAPI.StatsResponse, error) {
	t, err := s.task(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	stats, err := t.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &taskAPI.StatsResponse{Stats: &anypb.Any{TypeUrl: stats.TypeURL, Value: stats.Value}}, nil
}

// Connect answers for an id that is not known too, as stock shims do.
func (s *service) Connect(ctx context.Context, r *taskAPI.ConnectRequest) (*taskAPI.ConnectResponse, error) {
	resp := &taskAPI.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "v3"}
	if t, err := s.task(ctx, r.ID); err == nil {
		if st, err := t.State(ctx); err == nil {
			resp.TaskPid = st.Pid
		}
	}
	return resp, nil
}

// Shutdown ends the shim once it has no containers; until then it does nothing.
func (s *service) Shutdown(context.Context, *taskAPI.ShutdownRequest) (*emptypb.Empty, error) {
	s.shutdown()
	return &emptypb.Empty{}, nil
}
