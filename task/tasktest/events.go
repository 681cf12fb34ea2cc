package tasktest

import (
	"testing"

	"github.com/berthd/berth/task"
)

// CheckEvents checks the order of the events of each container, and that each
// comes once: create < start < exec-added < exec-started < exit of the exec <
// oom < exit of init < delete.
func CheckEvents(t *testing.T, events []task.Event) {
	t.Helper()
	lives := map[task.ID]*life{}
	for i, e := range events {
		l := lives[e.ID]
		if e.Kind == task.EventCreate && (l == nil || l.deleted) {
			lives[e.ID] = &life{execs: map[string]task.EventKind{}}
			continue
		}
		if l == nil {
			t.Errorf("event %d: %s of %s before its create", i, e.Kind.Topic(), e.ID)
			continue
		}
		if problem := l.add(e); problem != "" {
			t.Errorf("event %d: %s of %s/%s %s", i, e.Kind.Topic(), e.ID, e.ExecID, problem)
		}
	}
}

// life is what the events so far say of one container.
type life struct {
	started, exited, deleted bool
	execs                    map[string]task.EventKind
}

func (l *life) add(e task.Event) string {
	if l.deleted {
		return "after its delete"
	}
	last, known := l.execs[e.ExecID]
	switch e.Kind {
	case task.EventCreate:
		return "a second time"
	case task.EventStart:
		if l.started || l.exited {
			return "twice, or after the exit"
		}
		l.started = true
	case task.EventExecAdded:
		if l.exited || known && last != task.EventExit {
			return "after the exit, or twice"
		}
		l.execs[e.ExecID] = e.Kind
	case task.EventExecStarted:
		if l.exited || !known || last != task.EventExecAdded {
			return "after the exit, or without exec-added"
		}
		l.execs[e.ExecID] = e.Kind
	case task.EventOOM:
		if l.exited {
			return "after the exit"
		}
	case task.EventExit:
		return l.exit(e, known, last)
	case task.EventDelete:
		if !l.exited {
			return "before the exit"
		}
		l.deleted = true
	}
	return ""
}

func (l *life) exit(e task.Event, known bool, last task.EventKind) string {
	if e.ExecID != "" {
		if l.exited || !known || last != task.EventExecStarted {
			return "after the container's exit, or without exec-started"
		}
		l.execs[e.ExecID] = e.Kind
		return ""
	}
	if l.exited {
		return "twice"
	}
	for id, kind := range l.execs {
		if kind == task.EventExecStarted {
			return "before the exit of exec " + id
		}
	}
	l.exited = true
	return ""
}
