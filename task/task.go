package task

import (
	"context"
	"syscall"
	"time"
)

// ID names a task: the id of its container within a namespace.
type ID struct {
	Namespace string
	Container string
}

func (id ID) String() string { return id.Namespace + "/" + id.Container }

// Any is a payload that Berth carries without looking inside: its type URL
// says what the bytes are (protobuf, or JSON for OCI types).
type Any struct {
	TypeURL string
	Value   []byte
}

// Empty says that there is no payload.
func (a Any) Empty() bool { return a.TypeURL == "" && len(a.Value) == 0 }

// ConsoleSize is the size of a terminal in characters. The zero value leaves
// the size to the runtime.
type ConsoleSize struct {
	Width, Height uint16
}

// Stdio says where the three streams of a process go: an empty string (the
// null device), the path of a FIFO or of a file, or a URI (fifo://, file://).
// With Terminal there is one stream for both outputs, and Stderr is not used.
type Stdio struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
	Size                  ConsoleSize
}

// Mount is one mount of a container's root file system.
type Mount struct {
	Type    string   `json:"type,omitempty"`
	Source  string   `json:"source,omitempty"`
	Target  string   `json:"target,omitempty"`
	Options []string `json:"options,omitempty"`
}

// CreateConfig describes the task to create.
type CreateConfig struct {
	// Spec is the OCI spec as JSON, byte for byte what the client sent. Whoever
	// is given a Bundle reads it there instead.
	Spec []byte
	// Bundle is the bundle directory. A Runner that makes bundles itself
	// (the supervisor) wants it empty.
	Bundle string
	// Runtime is a runtime name ("io.containerd.runc.v2") or the absolute path
	// of a shim binary.
	Runtime string
	// Options are the runtime's options, e.g. containerd.runc.v1.Options.
	Options Any
	Rootfs  []Mount
	Stdio   Stdio
	// Checkpoint is a directory to restore from, empty for a new container.
	Checkpoint string
	// SandboxID and SandboxAddress name the sandbox whose shim serves the
	// task; empty for none. The address is "<protocol>+<scheme>://…".
	SandboxID      string
	SandboxAddress string
	SandboxVersion uint32
}

// ExecConfig describes a process to add to a running container.
type ExecConfig struct {
	// Spec is the OCI process as JSON. Its "terminal" is overridden by Stdio.
	Spec  []byte
	Stdio Stdio
}

// CheckpointConfig says how to checkpoint a container.
type CheckpointConfig struct {
	// Path is the directory that receives the image; it must exist.
	Path string
	// Options are the runtime's options, e.g. containerd.runc.v1.CheckpointOptions.
	Options Any
}

// Exit is how a process ended.
type Exit struct {
	Pid uint32 `json:"pid"`
	// Status is the exit code, or 128 plus the signal that ended the process.
	// 255 with a Reason: the true status could not be learned.
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
	// OOMKilled says that the kernel killed a process of the container for
	// memory. Set for init processes only.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Reason explains a status that is not the process's own.
	Reason string `json:"reason,omitempty"`
}

// State is a moment of a process.
type State struct {
	ID     ID
	ExecID string
	Bundle string
	Pid    uint32
	Status Status
	Stdio  Stdio
	// Exit is nil until the process has ended.
	Exit *Exit
	// Stale says that the process's keeper did not answer and that this is what was
	// last known.
	Stale bool
}

// ProcessInfo is one process of a container. ExecID is set where the process
// is the first of an exec.
type ProcessInfo struct {
	Pid    uint32
	ExecID string
}

// Process is one process of a container: its init or an exec.
//
// Every method checks the life-cycle table first and returns a *StateError
// for what it does not allow.
type Process interface {
	// ExecID is empty for the init process.
	ExecID() string
	State(ctx context.Context) (State, error)
	// Start runs the process and returns its pid. When it returns, the
	// process's start event is queued before any exit event.
	Start(ctx context.Context) (pid uint32, err error)
	// Kill sends the signal. With all, every process of the container gets it;
	// only an init process takes all.
	Kill(ctx context.Context, signal syscall.Signal, all bool) error
	// Resize sets the size of the terminal; without a terminal it does nothing.
	Resize(ctx context.Context, size ConsoleSize) error
	// CloseStdin lets the process see the end of its input once the client's
	// writers are gone too. It is idempotent.
	CloseStdin(ctx context.Context) error
	// Wait returns when the process has ended and its exit is stored and
	// published. A process deleted before it was started gives NotFound. It
	// returns early only with ctx's error or when the keeper is lost.
	Wait(ctx context.Context) (Exit, error)
	// Delete frees what the process holds and forgets it. It runs to its end
	// whatever becomes of ctx; calls that come meanwhile get the same answer.
	Delete(ctx context.Context) (Exit, error)
}

// Task is the init process of a container, and the container's operations.
type Task interface {
	Process
	ID() ID
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Update changes the container's resources (JSON LinuxResources).
	Update(ctx context.Context, resources Any, annotations map[string]string) error
	Checkpoint(ctx context.Context, cfg CheckpointConfig) error
	// Exec registers a process; its Start runs it. A taken id is AlreadyExists.
	Exec(ctx context.Context, execID string, cfg ExecConfig) (Process, error)
	// Process finds an exec; an unknown id is NotFound.
	Process(ctx context.Context, execID string) (Process, error)
	Pids(ctx context.Context) ([]ProcessInfo, error)
	// Stats are cgroup metrics (io.containerd.cgroups.v1.Metrics or v2).
	Stats(ctx context.Context) (Any, error)
}

// Runner makes and finds tasks. There is one at each level: the container
// package, the shim's client, the supervisor, the gRPC client; tasktest runs
// the same suite over all of them.
type Runner interface {
	// Create makes a task in state created. A taken id is AlreadyExists. When
	// it fails nothing is left.
	Create(ctx context.Context, id ID, cfg CreateConfig) (Task, error)
	// Get finds a task; an unknown id is NotFound.
	Get(ctx context.Context, id ID) (Task, error)
	// List returns the tasks of a namespace ordered by id. It answers from
	// memory and waits for no one.
	List(ctx context.Context, namespace string) ([]Task, error)
}
