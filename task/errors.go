package task

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// StateError says that a process is in a state that does not allow the
// operation. It is errdefs.ErrFailedPrecondition, or errdefs.ErrNotFound where
// the process has ended or was deleted (Gone).
type StateError struct {
	// ID and ExecID name the process; the holder of the process fills them in.
	ID     ID
	ExecID string
	Kind   Kind
	Status Status
	Op     Operation
	Gone   bool
}

func (e *StateError) Error() string {
	name := e.Kind.String() + " process"
	switch {
	case e.ExecID != "":
		name = fmt.Sprintf("exec %q of container %q", e.ExecID, e.ID.Container)
	case e.ID.Container != "":
		name = fmt.Sprintf("container %q", e.ID.Container)
	}
	if e.Gone && e.Op == OpKill && e.Status == Stopped {
		// The words that clients look for when they kill what has ended.
		return fmt.Sprintf("cannot kill %s in state stopped: process already finished", name)
	}
	return fmt.Sprintf("cannot %s %s in state %s", e.Op, name, e.Status)
}

func (e *StateError) Unwrap() error {
	if e.Gone {
		return errdefs.ErrNotFound
	}
	return errdefs.ErrFailedPrecondition
}

// RuntimeError is a call of the OCI runtime that failed. Its text ends with
// what the runtime said of it.
type RuntimeError struct {
	// Binary is the runtime, Op its subcommand ("create", "start", …).
	Binary string
	Op     string
	// Message is the last error of the runtime's log, or what it printed.
	Message string
	// Err is the cause: *exec.ExitError, context.DeadlineExceeded, …
	Err error
	// Class is the errdefs sentinel that the message could be mapped to, or nil.
	Class error
}

func (e *RuntimeError) Error() string {
	msg := e.Message
	if msg == "" && e.Err != nil {
		msg = e.Err.Error()
	}
	return fmt.Sprintf("OCI runtime %s failed: %s", e.Op, msg)
}

func (e *RuntimeError) Unwrap() []error {
	var errs []error
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	if e.Class != nil {
		errs = append(errs, e.Class)
	}
	return errs
}
