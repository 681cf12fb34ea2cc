package tasktest

import (
	eventsapi "github.com/containerd/containerd/api/events"

	"github.com/berthd/berth/task"
)

// DecodeEvent turns a task event as it goes over the wire into what package
// task calls it. ok is false for any other message.
func DecodeEvent(namespace string, message any) (e task.Event, ok bool) {
	e.ID.Namespace = namespace
	switch v := message.(type) {
	case *eventsapi.TaskCreate:
		e.Kind, e.ID.Container, e.Pid, e.Checkpoint = task.EventCreate, v.ContainerID, v.Pid, v.Checkpoint
	case *eventsapi.TaskStart:
		e.Kind, e.ID.Container, e.Pid = task.EventStart, v.ContainerID, v.Pid
	case *eventsapi.TaskExecAdded:
		e.Kind, e.ID.Container, e.ExecID = task.EventExecAdded, v.ContainerID, v.ExecID
	case *eventsapi.TaskExecStarted:
		e.Kind, e.ID.Container, e.ExecID, e.Pid = task.EventExecStarted, v.ContainerID, v.ExecID, v.Pid
	case *eventsapi.TaskPaused:
		e.Kind, e.ID.Container = task.EventPaused, v.ContainerID
	case *eventsapi.TaskResumed:
		e.Kind, e.ID.Container = task.EventResumed, v.ContainerID
	case *eventsapi.TaskCheckpointed:
		e.Kind, e.ID.Container, e.Checkpoint = task.EventCheckpointed, v.ContainerID, v.Checkpoint
	case *eventsapi.TaskOOM:
		e.Kind, e.ID.Container = task.EventOOM, v.ContainerID
	case *eventsapi.TaskExit:
		e.Kind, e.ID.Container, e.Pid = task.EventExit, v.ContainerID, v.Pid
		if v.ID != v.ContainerID {
			e.ExecID = v.ID
		}
		e.Exit = task.Exit{Pid: v.Pid, Status: v.ExitStatus, At: v.ExitedAt.AsTime()}
	case *eventsapi.TaskDelete:
		e.Kind, e.ID.Container, e.Pid = task.EventDelete, v.ContainerID, v.Pid
		e.Exit = task.Exit{Pid: v.Pid, Status: v.ExitStatus, At: v.ExitedAt.AsTime()}
	default:
		return e, false
	}
	return e, true
}
