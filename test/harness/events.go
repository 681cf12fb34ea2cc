package harness

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

// eventLog is what Berth has told of tasks since the test began: it subscribes
// whenever the daemon boots. At the end of every test the order is checked.
// Events that the daemon tells before the subscription of a later boot stands,
// or after that of an earlier one has ended, are not seen.
type eventLog struct {
	mu      sync.Mutex
	checker tasktest.EventChecker // guarded by mu
	events  []task.Event          // guarded by mu
	foreign map[task.ID]bool      // containers of another maker's shim, guarded by mu
	probe   string                // the last probe seen, guarded by mu
}

// subscription is the one of a boot.
type subscription struct {
	client *containerd.Client
	cancel context.CancelFunc
	done   chan struct{}
}

const probeTopic = "/harness/probe"

// watchEvents subscribes and waits until the subscription stands.
func (d *Daemon) watchEvents(tb testing.TB) {
	tb.Helper()
	client, err := d.dial()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(context.Background(), d.Namespace))
	s := &subscription{client: client, cancel: cancel, done: make(chan struct{})}
	d.subscription = s
	ch, errs := client.EventService().Subscribe(ctx)
	go func() {
		defer close(s.done)
		for {
			select {
			case env := <-ch:
				d.log.add(env)
			case <-errs:
				return
			}
		}
	}()
	n := 0
	Await(tb, 30*time.Second, "subscription to events", func() bool {
		n++
		name := fmt.Sprintf("%d-%d", d.PID(), n)
		if err := client.EventService().Publish(ctx, probeTopic, &eventsapi.NamespaceCreate{Name: name}); err != nil {
			return false
		}
		return Poll(100*time.Millisecond, func() bool { return d.log.probed(name) })
	})
}

// unwatchEvents ends the subscription of a boot.
func (d *Daemon) unwatchEvents() {
	s := d.subscription
	if s == nil {
		return
	}
	d.subscription = nil
	s.cancel()
	<-s.done
	s.client.Close()
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	d.log.checker.Gap()
}

func (l *eventLog) probed(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.probe == name
}

func (l *eventLog) add(env *events.Envelope) {
	message, err := typeurl.UnmarshalAny(env.Event)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return
	}
	if v, ok := message.(*eventsapi.NamespaceCreate); ok && env.Topic == probeTopic {
		l.probe = v.Name
	}
	if v, ok := message.(*eventsapi.ContainerCreate); ok {
		name := v.GetRuntime().GetName()
		id := task.ID{Namespace: env.Namespace, Container: v.ID}
		if l.foreign == nil {
			l.foreign = map[task.ID]bool{}
		}
		l.foreign[id] = name != "io.containerd.berth.v2" && name != "io.containerd.runc.v2"
	}
	e, ok := tasktest.DecodeEvent(env.Namespace, message)
	if !ok || l.foreign[e.ID] {
		return
	}
	l.events = append(l.events, e)
	l.checker.Add(e)
}

// Events returns what the daemon has told of the tasks of Berth's own shim so
// far, in order.
func (d *Daemon) Events() []task.Event {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	return append([]task.Event{}, d.log.events...)
}

// checkEvents fails the test when events came in a wrong order, twice, or not
// at all. complete asks for the end of every container whose life was told.
func (d *Daemon) checkEvents(tb testing.TB, complete bool) {
	tb.Helper()
	var unfinished []string
	if complete {
		unfinished = settle(func() []string {
			d.log.mu.Lock()
			defer d.log.mu.Unlock()
			return d.log.checker.Unfinished()
		})
	}
	d.log.mu.Lock()
	problems := d.log.checker.Problems()
	d.log.mu.Unlock()
	problems = append(problems, prefixed("not told to its end: ", unfinished)...)
	if len(problems) == 0 {
		return
	}
	var all strings.Builder
	for i, e := range d.Events() {
		fmt.Fprintf(&all, "%4d %s %s %s pid %d status %d\n", i+1, e.Kind.Topic(), e.ID.Container, e.ExecID, e.Pid, e.Exit.Status)
	}
	tb.Errorf("events of %s:\n%s\nall of them:\n%s", d.Kind, strings.Join(problems, "\n"), all.String())
}
