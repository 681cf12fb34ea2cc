package container

import (
	"slices"
	"time"

	"github.com/berthd/berth/task"
)

// Events takes the events of a Set.
type Events interface {
	task.EventSink
	// Told says that the event was emitted, by this process or one before it,
	// after the time given. Only Adopt asks.
	Told(e task.Event, since time.Time) bool
}

// owed is an event that follows from a state. It is stored with the state, in
// one step, and emitted after that: a shim that is killed between the two
// leaves its successor what is to be told. What was told stays in the record
// until the next save; that it was told is known to [Events].
type owed struct {
	Since time.Time  `json:"since"` // no later than the event's own time
	Event task.Event `json:"event"`
}

// owe notes an event for the next save. The caller holds c.mu.
func (p *process) owe(e task.Event) {
	e.ID, e.ExecID = p.c.id, p.id
	p.owed = append(p.owed, owed{time.Now(), e})
}

// payLocked emits what is owed and stored: another goroutine may have come to owe
// more since the caller's save. The caller holds c.mu.
func (p *process) payLocked() {
	for _, o := range p.owed[:p.stored] {
		p.c.set.cfg.Events.Emit(o.Event)
	}
	p.owed, p.stored = slices.Delete(p.owed, 0, p.stored), 0
}

func (p *process) pay() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.payLocked()
}

// payDebts emits what the predecessor of this shim stored and did not tell.
// The container is not shared yet.
func (c *Container) payDebts() {
	debts := c.init.owed
	c.init.owed = nil
	for _, p := range c.execs {
		debts = append(debts, p.owed...)
		p.owed = nil
	}
	slices.SortStableFunc(debts, func(a, b owed) int { return a.Since.Compare(b.Since) })
	for _, o := range debts {
		if !c.set.cfg.Events.Told(o.Event, o.Since) {
			c.set.cfg.Events.Emit(o.Event)
		}
	}
}
