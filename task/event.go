package task

// EventKind is what happened to a process.
type EventKind uint8

const (
	EventCreate EventKind = iota
	EventStart
	EventExecAdded
	EventExecStarted
	EventPaused
	EventResumed
	EventCheckpointed
	EventOOM
	EventExit
	EventDelete
)

var eventTopics = [...]string{
	EventCreate: "/tasks/create", EventStart: "/tasks/start", EventExecAdded: "/tasks/exec-added",
	EventExecStarted: "/tasks/exec-started", EventPaused: "/tasks/paused", EventResumed: "/tasks/resumed",
	EventCheckpointed: "/tasks/checkpointed", EventOOM: "/tasks/oom", EventExit: "/tasks/exit",
	EventDelete: "/tasks/delete",
}

// Topic is the event's name on the wire.
func (k EventKind) Topic() string { return eventTopics[k] }

// Event is one thing that happened to a process. The events of one container
// come in the order create < start < exec-added < exec-started < exit of an
// exec < exit of init < delete, each once. EventOOM comes between create and the
// exit of init, for each kill; kills that are found together are one event.
type Event struct {
	Kind   EventKind
	ID     ID
	ExecID string
	Pid    uint32
	// Exit is set for EventExit and EventDelete.
	Exit Exit
	// Bundle, Rootfs, Stdio and Checkpoint are set for EventCreate;
	// Checkpoint for EventCheckpointed too.
	Bundle     string
	Rootfs     []Mount
	Stdio      Stdio
	Checkpoint string
}

// EventSink takes events in order and does not block its caller on a
// receiver.
type EventSink interface {
	Emit(Event)
}
