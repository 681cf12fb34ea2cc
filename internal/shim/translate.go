package shim

import (
	"fmt"
	"time"

	eventsAPI "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	taskTypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/internal/container"
	"github.com/berthd/berth/task"
)

func fromAny(a *anypb.Any) task.Any {
	return task.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
}

func fromMounts(list []*types.Mount) []task.Mount {
	mounts := make([]task.Mount, 0, len(list))
	for _, m := range list {
		mounts = append(mounts, task.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return mounts
}

func toMounts(list []task.Mount) []*types.Mount {
	mounts := make([]*types.Mount, 0, len(list))
	for _, m := range list {
		mounts = append(mounts, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return mounts
}

func toTimestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toProcessInfo(pid uint32) *taskTypes.ProcessInfo { return &taskTypes.ProcessInfo{Pid: pid} }

func toStatus(s task.Status) taskTypes.Status {
	switch s {
	case task.Created, task.CreatedCheckpoint:
		return taskTypes.Status_CREATED
	case task.Running:
		return taskTypes.Status_RUNNING
	case task.Paused:
		return taskTypes.Status_PAUSED
	case task.Pausing:
		return taskTypes.Status_PAUSING
	case task.Stopped, task.Deleted:
		return taskTypes.Status_STOPPED
	default:
		return taskTypes.Status_UNKNOWN
	}
}

// unpack decodes an Any of the given message; another type is refused rather
// than ignored.
func unpack(a task.Any, into proto.Message) error {
	if a.Empty() {
		return nil
	}
	any := &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
	if !any.MessageIs(into) {
		return fmt.Errorf("options of type %q, not %s: %w", a.TypeURL, into.ProtoReflect().Descriptor().FullName(), errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(a.Value, into); err != nil {
		return fmt.Errorf("options of type %q: %w: %w", a.TypeURL, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func decodeOptions(a task.Any) (container.Options, error) {
	var o options.Options
	if err := unpack(a, &o); err != nil {
		return container.Options{}, err
	}
	return container.Options{
		Binary: o.BinaryName, Root: o.Root, SystemdCgroup: o.SystemdCgroup, NoPivotRoot: o.NoPivotRoot,
		NoNewKeyring: o.NoNewKeyring, IOUID: int(o.IoUid), IOGID: int(o.IoGid),
		CriuImagePath: o.CriuImagePath, CriuWorkPath: o.CriuWorkPath,
	}, nil
}

func decodeCheckpointOptions(a task.Any) (container.CheckpointOptions, error) {
	var o options.CheckpointOptions
	if err := unpack(a, &o); err != nil {
		return container.CheckpointOptions{}, err
	}
	return container.CheckpointOptions{
		Exit: o.Exit, OpenTCP: o.OpenTcp, ExternalUnixSockets: o.ExternalUnixSockets, Terminal: o.Terminal,
		FileLocks: o.FileLocks, EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
		ImagePath: o.ImagePath, WorkPath: o.WorkPath, ParentPath: o.ParentPath,
	}, nil
}

// eventMessage gives an event its form on the wire.
func eventMessage(e task.Event) proto.Message {
	id := e.ID.Container
	switch e.Kind {
	case task.EventCreate:
		return &eventsAPI.TaskCreate{
			ContainerID: id, Bundle: e.Bundle, Rootfs: toMounts(e.Rootfs), Checkpoint: e.Checkpoint, Pid: e.Pid,
			IO: &eventsAPI.TaskIO{Stdin: e.Stdio.Stdin, Stdout: e.Stdio.Stdout, Stderr: e.Stdio.Stderr, Terminal: e.Stdio.Terminal},
		}
	case task.EventStart:
		return &eventsAPI.TaskStart{ContainerID: id, Pid: e.Pid}
	case task.EventExecAdded:
		return &eventsAPI.TaskExecAdded{ContainerID: id, ExecID: e.ExecID}
	case task.EventExecStarted:
		return &eventsAPI.TaskExecStarted{ContainerID: id, ExecID: e.ExecID, Pid: e.Pid}
	case task.EventPaused:
		return &eventsAPI.TaskPaused{ContainerID: id}
	case task.EventResumed:
		return &eventsAPI.TaskResumed{ContainerID: id}
	case task.EventCheckpointed:
		return &eventsAPI.TaskCheckpointed{ContainerID: id, Checkpoint: e.Checkpoint}
	case task.EventOOM:
		return &eventsAPI.TaskOOM{ContainerID: id}
	case task.EventExit:
		process := e.ExecID
		if process == "" {
			process = id
		}
		return &eventsAPI.TaskExit{
			ContainerID: id, ID: process, Pid: e.Pid, ExitStatus: e.Exit.Status, ExitedAt: toTimestamp(e.Exit.At),
		}
	default:
		return &eventsAPI.TaskDelete{ContainerID: id, Pid: e.Pid, ExitStatus: e.Exit.Status, ExitedAt: toTimestamp(e.Exit.At)}
	}
}
