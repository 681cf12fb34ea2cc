package api

import (
	"context"
	"fmt"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/task"
)

// restoreFromPath is the annotation by which containerd's own CRI plugin asks
// to restore from a directory of the host. Annotations of a checkpoint come
// from its image, which may be anybody's: see [Tasks.checkpointFor].
const restoreFromPath = "RestoreFromPath"

// Create makes a task from its container's record.
func (s *Tasks) Create(ctx context.Context, r *tasksapi.CreateTaskRequest) (*tasksapi.CreateTaskResponse, error) {
	pid, err := s.create(ctx, r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &tasksapi.CreateTaskResponse{ContainerID: r.ContainerID, Pid: pid}, nil
}

func (s *Tasks) create(ctx context.Context, r *tasksapi.CreateTaskRequest) (pid uint32, retErr error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return 0, err
	}
	record, err := s.cfg.Containers.Get(ctx, r.ContainerID)
	if err != nil {
		return 0, err
	}
	cfg, err := createConfig(record, r)
	if err != nil {
		return 0, err
	}
	id := task.ID{Namespace: ns, Container: r.ContainerID}
	if cfg.Checkpoint == "" && r.Checkpoint != nil {
		if cfg.Checkpoint, err = s.checkpointFor(ctx, id, r.Checkpoint); err != nil {
			return 0, err
		}
		defer func() {
			if retErr != nil {
				s.dropRestore(ctx, r.ContainerID)
			}
		}()
	}
	t, err := s.cfg.Runner.Create(ctx, id, cfg)
	if err != nil {
		return 0, err
	}
	state, err := t.State(ctx)
	if err != nil {
		// The caller will take this for a failed create, and so nothing may stay.
		return 0, s.undoCreate(ctx, t, err)
	}
	return state.Pid, nil
}

func (s *Tasks) undoCreate(ctx context.Context, t task.Task, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.StateTimeout)
	defer cancel()
	if _, err := t.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("%w (and the new task could not be deleted: %w)", cause, err)
	}
	return cause
}

// createConfig joins a container's record with a request. The request's
// options win over the record's.
func createConfig(record containers.Container, r *tasksapi.CreateTaskRequest) (task.CreateConfig, error) {
	if record.Spec == nil || len(record.Spec.GetValue()) == 0 {
		return task.CreateConfig{}, fmt.Errorf("container %q has no spec: %w", record.ID, errdefs.ErrFailedPrecondition)
	}
	cfg := task.CreateConfig{
		Spec:           record.Spec.GetValue(),
		Runtime:        record.Runtime.Name,
		Options:        fromTypeurl(record.Runtime.Options),
		Stdio:          task.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		SandboxID:      record.SandboxID,
		SandboxAddress: r.TaskApiAddress,
		SandboxVersion: r.TaskApiVersion,
	}
	if r.RuntimePath != "" {
		cfg.Runtime = r.RuntimePath
	}
	for _, m := range r.Rootfs {
		cfg.Rootfs = append(cfg.Rootfs, task.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if len(r.GetOptions().GetValue()) > 0 {
		cfg.Options = fromAny(r.Options)
	}
	if r.Options != nil {
		if err := applyRuncOptions(&cfg, r.Options); err != nil {
			return task.CreateConfig{}, err
		}
	}
	return cfg, nil
}

// applyRuncOptions takes out of a request's options what is not for the
// runtime. Options of another type are for the runtime alone.
func applyRuncOptions(cfg *task.CreateConfig, options *anypb.Any) error {
	var runc runcoptions.Options
	if !typeurl.Is(options, &runc) {
		return nil
	}
	if err := typeurl.UnmarshalTo(options, &runc); err != nil {
		return fmt.Errorf("invalid task create option for %s: %w: %w", cfg.Runtime, err, errdefs.ErrInvalidArgument)
	}
	cfg.Checkpoint = runc.CriuImagePath
	if cfg.SandboxAddress == "" {
		//lint:ignore SA1019 older clients set nothing else
		cfg.SandboxAddress = runc.TaskApiAddress //nolint:staticcheck // as above
	}
	if cfg.SandboxVersion == 0 {
		//lint:ignore SA1019 older clients set nothing else
		cfg.SandboxVersion = runc.TaskApiVersion //nolint:staticcheck // as above
	}
	return nil
}

func fromAny(a *anypb.Any) task.Any {
	return task.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
}

func fromTypeurl(a typeurl.Any) task.Any {
	if a == nil {
		return task.Any{}
	}
	return task.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
}

func toAny(a task.Any) *anypb.Any {
	if a.Empty() {
		return nil
	}
	return &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
}
