package supervisor

import (
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/task"
)

// calls are the methods of the Task service with their bounds.
type calls struct {
	create, start, exec, del, pause, resume, update call
	kill, resize, closeIO                           call
	state, connect, pids, stats                     call
	checkpoint, wait, shutdown                      call
}

func newCalls(t Timeouts) calls {
	return calls{
		create:     call{method: "Create", limit: t.Runtime, impatient: true},
		start:      call{method: "Start", limit: t.Runtime, impatient: true},
		exec:       call{method: "Exec", limit: t.Runtime, impatient: true},
		del:        call{method: "Delete", limit: t.Runtime, impatient: true},
		pause:      call{method: "Pause", limit: t.Runtime, impatient: true},
		resume:     call{method: "Resume", limit: t.Runtime, impatient: true},
		update:     call{method: "Update", limit: t.Runtime, impatient: true},
		kill:       call{method: "Kill", limit: t.Signal, impatient: true},
		resize:     call{method: "ResizePty", limit: t.Signal, repeat: true, impatient: true},
		closeIO:    call{method: "CloseIO", limit: t.Signal, repeat: true, impatient: true},
		state:      call{method: "State", limit: t.State, repeat: true, question: true},
		connect:    call{method: "Connect", limit: t.Load, repeat: true, question: true},
		pids:       call{method: "Pids", limit: t.State, repeat: true, question: true},
		stats:      call{method: "Stats", limit: t.State, repeat: true, question: true},
		checkpoint: call{method: "Checkpoint", limit: t.Checkpoint, impatient: true},
		wait:       call{method: "Wait", repeat: true},
		shutdown:   call{method: "Shutdown", limit: t.Shutdown},
	}
}

func statusOf(s tasktypes.Status) task.Status {
	switch s {
	case tasktypes.Status_CREATED:
		return task.Created
	case tasktypes.Status_RUNNING:
		return task.Running
	case tasktypes.Status_STOPPED:
		return task.Stopped
	case tasktypes.Status_PAUSED:
		return task.Paused
	case tasktypes.Status_PAUSING:
		return task.Pausing
	default:
		return task.Unknown
	}
}

func stateOf(id task.ID, execID string, r *taskapi.StateResponse) task.State {
	st := task.State{
		ID: id, ExecID: execID, Bundle: r.Bundle, Pid: r.Pid, Status: statusOf(r.Status),
		Stdio: task.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	}
	if st.Status == task.Stopped {
		st.Exit = &task.Exit{Pid: r.Pid, Status: r.ExitStatus, At: timeOf(r.ExitedAt)}
	}
	return st
}

// timeOf gives the zero time for what is unset or not a time.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil || t.CheckValid() != nil {
		return time.Time{}
	}
	if at := t.AsTime(); at.Unix() > 0 {
		return at
	}
	// Shims in Go send the zero time.Time where there is none.
	return time.Time{}
}

func anyOf(a task.Any) *anypb.Any {
	if a.Empty() {
		return nil
	}
	return &anypb.Any{TypeUrl: a.TypeURL, Value: a.Value}
}

func mountsOf(mounts []task.Mount) []*types.Mount {
	var out []*types.Mount
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}
