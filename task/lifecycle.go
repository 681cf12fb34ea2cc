package task

import (
	"fmt"
	"strings"
)

// Kind tells the init process of a container from a process added to it.
type Kind uint8

const (
	Init Kind = iota
	Exec
)

func (k Kind) String() string {
	if k == Exec {
		return "exec"
	}
	return "init"
}

// Status is the state of a process. Pausing is never stored: it is what a
// running container shows while a pause call is under way.
type Status uint8

const (
	Unknown Status = iota
	Created
	// CreatedCheckpoint is an init process that Start restores from a
	// checkpoint; until then the runtime knows no container.
	CreatedCheckpoint
	Running
	Paused
	Stopped
	Deleted
	Pausing
)

var statusNames = [...]string{
	Unknown: "unknown", Created: "created", CreatedCheckpoint: "created-checkpoint", Running: "running",
	Paused: "paused", Stopped: "stopped", Deleted: "deleted", Pausing: "pausing",
}

func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// ParseStatus is the inverse of [Status.String]. An unknown name gives
// Unknown, which allows no operation.
func ParseStatus(s string) Status {
	for i, n := range statusNames {
		if n == s {
			return Status(i)
		}
	}
	return Unknown
}

// Operation is what a client asks of a process, or what happens to it
// ([OpExited], [OpStartFailed]).
type Operation uint8

const (
	OpStart Operation = iota
	OpDelete
	OpKill
	OpPause
	OpResume
	OpUpdate
	OpCheckpoint
	OpExec
	OpPids
	OpStats
	OpResize
	OpCloseStdin
	OpWait
	OpState
	// OpStartFailed is a start of an exec process that the runtime refused.
	// An init process whose start failed stays created until it exits.
	OpStartFailed
	// OpExited is the end of the process.
	OpExited
)

var opNames = [...]string{
	OpStart: "start", OpDelete: "delete", OpKill: "kill", OpPause: "pause", OpResume: "resume",
	OpUpdate: "update", OpCheckpoint: "checkpoint", OpExec: "exec", OpPids: "pids", OpStats: "stats",
	OpResize: "resize", OpCloseStdin: "close-stdin", OpWait: "wait", OpState: "state",
	OpStartFailed: "start-failed", OpExited: "exited",
}

func (o Operation) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("operation(%d)", uint8(o))
}

// Operations lists every operation, in the order of the table's rows.
func Operations() []Operation {
	ops := make([]Operation, len(opNames))
	for i := range ops {
		ops[i] = Operation(i)
	}
	return ops
}

// States lists the states that a process of the kind can be in, in the order
// of the table's columns.
func States(k Kind) []Status {
	if k == Exec {
		return []Status{Created, Running, Stopped, Deleted}
	}
	return []Status{Created, CreatedCheckpoint, Running, Paused, Stopped, Deleted}
}

// A cell of the table is the next state, or refused, or gone. The zero value is refused:
// what the table does not list is not allowed.
type cell int8

const (
	refused cell = 0
	gone    cell = -1
)

func to(s Status) cell { return cell(s) }

type row map[Operation]cell

// same fills a row with operations that leave the state as it is.
func same(s Status, ops ...Operation) row {
	r := row{}
	for _, o := range ops {
		r[o] = to(s)
	}
	return r
}

func (r row) with(o Operation, c cell) row {
	r[o] = c
	return r
}

func allGone() row {
	r := row{}
	for _, o := range Operations() {
		r[o] = gone
	}
	return r
}

// next is the life cycle: what the table does not list is refused. Kill of a
// process that has ended answers "not found", as kill(2) does: every client
// takes that as "nothing left to kill".
var next = map[Kind]map[Status]row{
	Init: {
		Created: same(Created, OpKill, OpUpdate, OpExec, OpPids, OpStats, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpStart, to(Running)).
			with(OpDelete, to(Deleted)).
			with(OpExited, to(Stopped)),
		CreatedCheckpoint: same(CreatedCheckpoint, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpStart, to(Running)).
			with(OpDelete, to(Deleted)).
			with(OpExited, to(Stopped)),
		Running: same(Running, OpKill, OpUpdate, OpCheckpoint, OpExec, OpPids, OpStats, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpPause, to(Paused)).
			with(OpExited, to(Stopped)),
		Paused: same(Paused, OpKill, OpUpdate, OpCheckpoint, OpPids, OpStats, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpResume, to(Running)).
			with(OpExited, to(Stopped)),
		Stopped: same(Stopped, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpKill, gone).
			with(OpDelete, to(Deleted)),
		Deleted: allGone(),
	},
	Exec: {
		Created: same(Created, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpStart, to(Running)).
			with(OpStartFailed, to(Stopped)).
			with(OpDelete, to(Deleted)),
		Running: same(Running, OpKill, OpResize, OpCloseStdin, OpWait, OpState).
			with(OpExited, to(Stopped)),
		Stopped: same(Stopped, OpCloseStdin, OpWait, OpState).
			with(OpKill, gone).
			with(OpDelete, to(Deleted)),
		Deleted: allGone(),
	},
}

// Next returns the state that op leads to from state from. An operation that
// the table does not allow gives a *StateError, which is a FailedPrecondition,
// or NotFound where the process is gone.
func Next(k Kind, from Status, op Operation) (Status, error) {
	if from == Pausing {
		from = Running
	}
	c, listed := next[k][from][op]
	switch {
	case listed && c > 0:
		return Status(c), nil
	case c == gone:
		return from, &StateError{Kind: k, Status: from, Op: op, Gone: true}
	default:
		return from, &StateError{Kind: k, Status: from, Op: op}
	}
}

// Matrix prints the table of one kind as text: a row for each operation, a
// column for each state, each cell the next state, "-" for refused
// (FailedPrecondition) or "gone" (NotFound). docs/lifecycle.md holds its
// output; a test compares them.
func Matrix(k Kind) string {
	states := States(k)
	var b strings.Builder
	fmt.Fprintf(&b, "%-13s", k)
	for _, s := range states {
		fmt.Fprintf(&b, " %-19s", s)
	}
	b.WriteByte('\n')
	for _, o := range Operations() {
		fmt.Fprintf(&b, "%-13s", o)
		for _, s := range states {
			text := "-"
			switch c := next[k][s][o]; {
			case c == gone:
				text = "gone"
			case c > 0:
				text = Status(c).String()
			}
			fmt.Fprintf(&b, " %-19s", text)
		}
		b.WriteByte('\n')
	}
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
