package api

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/task"
)

const (
	// defaultStateTimeout bounds one State call; it is containerd's.
	defaultStateTimeout = 2 * time.Second
	// parallelStates is how many tasks List and Metrics ask at once.
	parallelStates = 16
	// maxSignal is the highest signal number of Linux.
	maxSignal = 64
)

// TasksConfig says what the task service works on.
type TasksConfig struct {
	// Runner runs the tasks.
	Runner task.Runner
	// Containers holds the records that tasks are created from.
	Containers containers.Store
	// Content receives checkpoints and gives them back.
	Content content.Store
	// TempDir is a directory of the service's own for checkpoints on their way
	// to and from the content store. They hold the memory of processes: the
	// service makes it 0700.
	TempDir string
	// StateTimeout bounds the question for one process's state; 0 means 2 s.
	StateTimeout time.Duration
	// Log receives what no caller is told: tasks left out of a list. Nil
	// means slog.Default.
	Log *slog.Logger
}

// Tasks is containerd.services.tasks.v1 over a task.Runner.
//
// A call looks for the task first and for its container record only where the
// record is needed, or to say what is missing: a task whose record was deleted
// can still be listed, killed and deleted.
type Tasks struct {
	tasksapi.UnimplementedTasksServer
	cfg TasksConfig
}

var _ tasksapi.TasksServer = (*Tasks)(nil)

// NewTasks makes the service. Runner, Containers, Content and TempDir must be
// set.
func NewTasks(cfg TasksConfig) *Tasks {
	if cfg.StateTimeout <= 0 {
		cfg.StateTimeout = defaultStateTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Tasks{cfg: cfg}
}

// find returns a task of the caller's namespace.
func (s *Tasks) find(ctx context.Context, container string) (task.Task, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	t, err := s.cfg.Runner.Get(ctx, task.ID{Namespace: ns, Container: container})
	if err == nil || !errdefs.IsNotFound(err) {
		return t, err
	}
	if _, cerr := s.cfg.Containers.Get(ctx, container); cerr != nil {
		return nil, cerr
	}
	return nil, fmt.Errorf("task %s not found: %w", container, errdefs.ErrNotFound)
}

// process returns the init process of a task, or one of its execs.
func (s *Tasks) process(ctx context.Context, container, exec string) (task.Process, error) {
	t, err := s.find(ctx, container)
	if err != nil || exec == "" {
		return t, err
	}
	return t.Process(ctx, exec)
}

// Start runs a created process.
func (s *Tasks) Start(ctx context.Context, r *tasksapi.StartRequest) (*tasksapi.StartResponse, error) {
	p, err := s.process(ctx, r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	pid, err := p.Start(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.ExecID == "" {
		s.dropRestore(ctx, r.ContainerID)
	}
	return &tasksapi.StartResponse{Pid: pid}, nil
}

// Delete frees a task that does not run any more, and says how it ended.
func (s *Tasks) Delete(ctx context.Context, r *tasksapi.DeleteTaskRequest) (*tasksapi.DeleteResponse, error) {
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	exit, err := t.Delete(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.dropRestore(ctx, r.ContainerID)
	return deleteResponse("", exit), nil
}

// DeleteProcess frees an exec that does not run any more.
func (s *Tasks) DeleteProcess(ctx context.Context, r *tasksapi.DeleteProcessRequest) (*tasksapi.DeleteResponse, error) {
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.ExecID == "" {
		return nil, errgrpc.ToGRPC(errNoExecID)
	}
	p, err := t.Process(ctx, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	exit, err := p.Delete(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return deleteResponse(r.ExecID, exit), nil
}

func deleteResponse(execID string, exit task.Exit) *tasksapi.DeleteResponse {
	return &tasksapi.DeleteResponse{
		ID:         execID,
		Pid:        exit.Pid,
		ExitStatus: exit.Status,
		ExitedAt:   timestamppb.New(exit.At),
	}
}

// Kill sends a signal to a process, or to all processes of a container.
func (s *Tasks) Kill(ctx context.Context, r *tasksapi.KillRequest) (*emptypb.Empty, error) {
	if r.Signal > maxSignal {
		return nil, errgrpc.ToGRPC(fmt.Errorf("signal %d of container %q does not exist (0 to %d): %w",
			r.Signal, r.ContainerID, maxSignal, errdefs.ErrInvalidArgument))
	}
	p, err := s.process(ctx, r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	all := r.All && r.ExecID == ""
	return done(p.Kill(ctx, syscall.Signal(r.Signal), all))
}

var errNoExecID = fmt.Errorf("exec id cannot be empty: %w", errdefs.ErrInvalidArgument)

// Exec registers a process to be started in a container.
func (s *Tasks) Exec(ctx context.Context, r *tasksapi.ExecProcessRequest) (*emptypb.Empty, error) {
	if r.ExecID == "" {
		return nil, errgrpc.ToGRPC(errNoExecID)
	}
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if err := identifiers.Validate(r.ExecID); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("exec id: %w", err))
	}
	if len(r.GetSpec().GetValue()) == 0 {
		return nil, errgrpc.ToGRPC(fmt.Errorf("exec %q of container %q has no process spec: %w",
			r.ExecID, r.ContainerID, errdefs.ErrInvalidArgument))
	}
	_, err = t.Exec(ctx, r.ExecID, task.ExecConfig{
		Spec:  r.Spec.Value,
		Stdio: task.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	return done(err)
}

// ResizePty sets the size of a process's terminal.
func (s *Tasks) ResizePty(ctx context.Context, r *tasksapi.ResizePtyRequest) (*emptypb.Empty, error) {
	if r.Width > math.MaxUint16 || r.Height > math.MaxUint16 {
		return nil, errgrpc.ToGRPC(fmt.Errorf("terminal size %dx%d of container %q is more than %d: %w",
			r.Width, r.Height, r.ContainerID, math.MaxUint16, errdefs.ErrInvalidArgument))
	}
	p, err := s.process(ctx, r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return done(p.Resize(ctx, task.ConsoleSize{Width: uint16(r.Width), Height: uint16(r.Height)}))
}

// CloseIO closes a process's standard input; there is nothing else to close.
func (s *Tasks) CloseIO(ctx context.Context, r *tasksapi.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(ctx, r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if !r.Stdin {
		return &emptypb.Empty{}, nil
	}
	return done(p.CloseStdin(ctx))
}

// Pause freezes all processes of a container.
func (s *Tasks) Pause(ctx context.Context, r *tasksapi.PauseTaskRequest) (*emptypb.Empty, error) {
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return done(t.Pause(ctx))
}

// Resume thaws them.
func (s *Tasks) Resume(ctx context.Context, r *tasksapi.ResumeTaskRequest) (*emptypb.Empty, error) {
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return done(t.Resume(ctx))
}

// Update changes a container's resources.
func (s *Tasks) Update(ctx context.Context, r *tasksapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return done(t.Update(ctx, fromAny(r.Resources), r.Annotations))
}

// Wait returns when a process has ended.
func (s *Tasks) Wait(ctx context.Context, r *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	p, err := s.process(ctx, r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &tasksapi.WaitResponse{ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

// done is the answer of a call that returns nothing but an error.
func done(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &emptypb.Empty{}, nil
}
