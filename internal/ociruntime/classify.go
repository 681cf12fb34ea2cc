package ociruntime

import (
	"strings"

	"github.com/containerd/errdefs"
)

// known is a text of runc or crun and what it means.
type known struct {
	// op limits the entry to one subcommand; empty is any.
	op    string
	text  string
	class error
}

// knownTexts is searched from top to bottom; the texts are in lower case.
// The program that a container should run comes first: its name is anybody's choice and
// may hold any of the other texts, so these match on what runtimes put around it.
var knownTexts = []known{
	{text: "executable file not found in $path", class: errdefs.ErrInvalidArgument},
	{text: "executable file `", class: errdefs.ErrInvalidArgument}, // crun
	{op: "create", text: ": stat /", class: errdefs.ErrInvalidArgument},
	{op: "exec", text: ": stat /", class: errdefs.ErrInvalidArgument},

	{text: "container with given id already exists", class: errdefs.ErrAlreadyExists},
	{text: "already exists", class: errdefs.ErrAlreadyExists},

	{text: "container does not exist", class: errdefs.ErrNotFound},
	{text: "` does not exist", class: errdefs.ErrNotFound}, // crun
	{op: "kill", text: "does not exist", class: errdefs.ErrNotFound},
	{op: "delete", text: "does not exist", class: errdefs.ErrNotFound},
	{text: "/status`: no such file or directory", class: errdefs.ErrNotFound}, // crun
	{op: "delete", text: "cannot open directory", class: errdefs.ErrNotFound}, // crun

	// A signal to what has ended: nothing is left to kill.
	{op: "kill", text: "process already finished", class: errdefs.ErrNotFound},
	{op: "kill", text: "no such process", class: errdefs.ErrNotFound},
	{op: "kill", text: "not running", class: errdefs.ErrNotFound},
	{op: "kill", text: "invalid signal", class: errdefs.ErrInvalidArgument},
	{op: "kill", text: "unknown signal", class: errdefs.ErrInvalidArgument},
	{op: "kill", text: "invalid argument", class: errdefs.ErrInvalidArgument},

	{text: "not running", class: errdefs.ErrFailedPrecondition},
	{text: "not paused", class: errdefs.ErrFailedPrecondition},
	{text: "is not stopped", class: errdefs.ErrFailedPrecondition},
	{text: "already running", class: errdefs.ErrFailedPrecondition},
	{text: "has stopped", class: errdefs.ErrFailedPrecondition},
	{text: "in a stopped container", class: errdefs.ErrFailedPrecondition},
	{text: "in the paused state", class: errdefs.ErrFailedPrecondition},
	{text: "in a paused container", class: errdefs.ErrFailedPrecondition},
	{text: "is not in `created` or `stopped` state", class: errdefs.ErrFailedPrecondition}, // crun
	{op: "start", text: "/exec.fifo`: no such file", class: errdefs.ErrFailedPrecondition}, // crun: started before
	{text: "process already finished", class: errdefs.ErrFailedPrecondition},
	{text: "no such process", class: errdefs.ErrFailedPrecondition},

	{text: "invalid container id", class: errdefs.ErrInvalidArgument},
	{text: "no help topic for", class: errdefs.ErrNotImplemented},
	{text: "unknown command", class: errdefs.ErrNotImplemented},
	{text: "flag provided but not defined", class: errdefs.ErrNotImplemented},
	{text: "unrecognized option", class: errdefs.ErrNotImplemented},

	{text: "permission denied", class: errdefs.ErrPermissionDenied},
	{text: `": is a directory`, class: errdefs.ErrPermissionDenied}, // execve, since runc 1.2
	{text: "operation not permitted", class: errdefs.ErrPermissionDenied},
	{text: "no space left on device", class: errdefs.ErrResourceExhausted},
	{text: "cannot allocate memory", class: errdefs.ErrResourceExhausted},
	{text: "resource temporarily unavailable", class: errdefs.ErrResourceExhausted},
}

// classify maps what a runtime said to an errdefs sentinel, or to nil.
func classify(op, text string) error {
	text = strings.ToLower(text)
	for _, k := range knownTexts {
		if (k.op == "" || k.op == op) && strings.Contains(text, k.text) {
			return k.class
		}
	}
	return nil
}
