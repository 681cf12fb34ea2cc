package tasktest

import (
	"fmt"
	"sort"
	"testing"

	"github.com/berthd/berth/task"
)

// CheckEvents checks a whole list with an [EventChecker].
func CheckEvents(t *testing.T, events []task.Event) {
	t.Helper()
	c := EventChecker{}
	for _, e := range events {
		c.Add(e)
	}
	for _, problem := range c.Problems() {
		t.Error(problem)
	}
}

// EventChecker holds a stream of events against the order that package task
// promises: create < start < exec-added < exec-started < exit of the exec <
// exit of init < delete, each once; paused and resumed take turns, and oom
// comes between create and the exit of init. The zero value is ready.
type EventChecker struct {
	lives    map[task.ID]*life
	gap      bool // some event may have been missed at some time
	n        int
	problems []string
}

// Gap says that events may have been missed from here on: of containers that
// live now, or that show up without a create, what is seen must still be in
// order and come once.
func (c *EventChecker) Gap() {
	c.gap = true
	for _, l := range c.lives {
		l.gap = true
	}
}

// Problems are what was wrong so far.
func (c *EventChecker) Problems() []string { return c.problems }

// Unfinished lists the containers whose delete was not told. Of one with a gap
// that may never be.
func (c *EventChecker) Unfinished() []string {
	var list []string
	for id, l := range c.lives {
		if !l.deleted && !l.gap {
			list = append(list, fmt.Sprintf("%s: started %t, exited %t, deleted %t", id, l.started, l.exited, l.deleted))
		}
	}
	sort.Strings(list)
	return list
}

// Add takes the next event.
func (c *EventChecker) Add(e task.Event) {
	c.n++
	if c.lives == nil {
		c.lives = map[task.ID]*life{}
	}
	l := c.lives[e.ID]
	if l == nil || l.deleted && (e.Kind == task.EventCreate || l.gap && e.Kind != task.EventDelete) {
		fresh := l == nil
		l = &life{gap: c.gap && e.Kind != task.EventCreate, pid: e.Pid, execs: map[string]exec{}}
		c.lives[e.ID] = l
		if e.Kind == task.EventCreate {
			return
		}
		if !l.gap && fresh {
			c.complain(e, "before its create")
		}
	}
	if problem := l.add(e); problem != "" {
		c.complain(e, problem)
	}
}

func (c *EventChecker) complain(e task.Event, problem string) {
	c.problems = append(c.problems, fmt.Sprintf("event %d: %s of %s %s (pid %d, status %d): %s",
		c.n, e.Kind.Topic(), e.ID, e.ExecID, e.Pid, e.Exit.Status, problem))
}

// life is what the events so far say of one container.
type life struct {
	gap                              bool
	started, paused, exited, deleted bool
	pid, status                      uint32
	execs                            map[string]exec
}

type exec struct {
	last task.EventKind
	pid  uint32
}

func (l *life) add(e task.Event) string {
	if x, ok := l.execs[e.ID.Container]; ok && e.Kind == task.EventExit && e.ExecID == "" && x.pid == e.Pid {
		e.ExecID = e.ID.Container // on the wire an exec with the container's name looks like init
	}
	switch {
	case l.deleted:
		return "after its delete"
	case l.exited && e.Kind == task.EventCheckpointed:
		// The checkpoint itself ended the processes, and exits wait for nothing.
	case l.exited && e.Kind != task.EventDelete:
		return "after its exit"
	case e.ExecID != "":
		return l.addExec(e)
	}
	switch e.Kind {
	case task.EventCreate:
		return "a second time"
	case task.EventStart:
		if l.started {
			return "a second time"
		}
		if l.pid != 0 && e.Pid != l.pid {
			return fmt.Sprintf("with another pid than %d", l.pid)
		}
		l.started, l.pid = true, e.Pid
	case task.EventPaused, task.EventResumed:
		pause := e.Kind == task.EventPaused
		if pause == l.paused && !l.gap {
			return "out of turn"
		}
		l.paused = pause
	case task.EventExit:
		return l.exit(e)
	case task.EventDelete:
		l.deleted = true
		if !l.exited && l.pid != 0 && !l.gap { // a restore that was never started has no process
			return "before its exit"
		}
		if l.exited && l.status != e.Exit.Status {
			return fmt.Sprintf("its exit said status %d", l.status)
		}
	}
	return ""
}

func (l *life) addExec(e task.Event) string {
	x, known := l.execs[e.ExecID]
	problem := ""
	switch e.Kind {
	case task.EventExecAdded:
		// One that was never started, or could not be, goes without an event.
		if known && x.last == task.EventExecStarted && !l.gap {
			problem = "while the one of that name runs"
		}
	case task.EventExecStarted:
		if x.last != task.EventExecAdded && !(l.gap && !known) {
			problem = "without exec-added before it"
		}
	case task.EventExit:
		if x.last != task.EventExecStarted && !(l.gap && x.last != task.EventExit) {
			problem = "without exec-started before it, or a second time"
		}
		if problem == "" && x.pid != 0 && x.pid != e.Pid {
			problem = fmt.Sprintf("with another pid than %d", x.pid)
		}
	}
	l.execs[e.ExecID] = exec{e.Kind, e.Pid}
	return problem
}

func (l *life) exit(e task.Event) string {
	l.exited, l.status = true, e.Exit.Status
	if l.pid != 0 && e.Pid != l.pid {
		return fmt.Sprintf("with another pid than %d", l.pid)
	}
	for id, x := range l.execs {
		if x.last == task.EventExecStarted && !l.gap {
			return "before the exit of exec " + id
		}
	}
	return ""
}
