package supervisor

import (
	"encoding/json"
	"time"

	"github.com/berthd/berth/task"
)

const (
	// exitFile is where shims note the exit of a container's init process.
	exitFile    = "exit.json"
	maxExitFile = 64 << 10
)

// exitNote is the content of exit.json. The last two are of Berth's shim, whose
// RPC replies have no room for them.
type exitNote struct {
	Timestamp time.Time
	Pid       int
	Status    int
	OOMKilled bool
	Reason    string
}

// complete adds to an exit of the init process what the shim noted in the
// bundle beside it. A note that is missing or of another exit adds nothing.
func (p *process) complete(exit task.Exit) task.Exit {
	if p.execID != "" {
		return exit
	}
	data, err := p.t.bundle.ReadFile(exitFile, maxExitFile)
	if err != nil {
		return exit
	}
	var note exitNote
	if json.Unmarshal(data, &note) != nil || note.Pid <= 0 || uint32(note.Status) != exit.Status {
		return exit
	}
	if exit.Pid == 0 {
		exit.Pid = uint32(note.Pid)
	}
	exit.OOMKilled = note.OOMKilled
	if exit.Reason == "" {
		exit.Reason = note.Reason
	}
	return exit
}
