// Package restart keeps containers in the state that their labels ask for
// (containerd.io/restart.*, as nerdctl's --restart writes them): it starts
// again what has ended and stops what shall not run.
//
// It acts on events, not on a clock: the exit of a task, a change of a
// container's record. After the start of the daemon, and when it has missed
// events, it looks at all containers.
package restart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	eventtypes "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
)

const (
	// attempts bounds the containers that are started or stopped at a time.
	attempts = 8
	// attemptTimeout bounds each start or stop.
	attemptTimeout = 2 * time.Minute
	// pause is the time between two tries to hear events.
	pause = time.Second
)

// Config says how a monitor works. The zero values of the times are those of
// the daemon.
type Config struct {
	// Client reaches the daemon's own services. The caller closes it, after Run.
	Client *client.Client
	// MinDelay is the time from an exit to the restart; it doubles with each
	// restart that did not last Lasting, up to MaxDelay. Default 1 s, 1 min
	// and 10 s. A client that follows its task has deleted it by then.
	MinDelay, MaxDelay, Lasting time.Duration
	// Settle is how long a container may be without a running task before it
	// counts: whoever made the record, or has deleted the task, may be about to
	// start one. Default 10 s, containerd's interval.
	Settle time.Duration
	// Log receives what happens to containers; nil means slog.Default.
	Log *slog.Logger
}

// key names a container.
type key struct{ namespace, id string }

// watch is what the monitor knows of a container that it looks after.
type watch struct {
	due     time.Time // when to look at it; zero: not at all
	settled bool      // at due, a task that is missing counts
	busy    bool      // a worker is at it
	again   bool      // something happened meanwhile
	history history
}

// history is what the delay of the next restart follows from.
type history struct {
	started   time.Time // the last restart
	fails     int       // restarts in a row that failed or did not last
	notBefore time.Time // after a restart that failed
}

// Monitor is made by New. Its fields belong to Run's goroutine.
type Monitor struct {
	cfg     Config
	watched map[key]*watch
	results chan result
	workers sync.WaitGroup
	busy    int
}

// result is what a worker has found or done.
type result struct {
	key key
	finding
	err error
}

// New makes a monitor, which does nothing before Run.
func New(cfg Config) *Monitor {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.MinDelay, time.Second}, {&cfg.MaxDelay, time.Minute}, {&cfg.Lasting, 10 * time.Second}, {&cfg.Settle, 10 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Monitor{cfg: cfg, watched: make(map[key]*watch), results: make(chan result)}
}

// Run works until ctx ends, and waits for what it has begun.
func (m *Monitor) Run(ctx context.Context) {
	defer m.drain()
	// What was stopped on purpose comes back with the daemon where the policy
	// says "always".
	m.forgetStops(ctx)
	for ctx.Err() == nil {
		err := m.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		m.cfg.Log.Warn("restart monitor has missed events and looks at all containers", slog.Any("error", err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// drain waits for workers, whose context has ended.
func (m *Monitor) drain() {
	go func() {
		m.workers.Wait()
		close(m.results)
	}()
	for range m.results { // nobody acts on them any more
	}
}

// follow acts on events until the subscription ends.
func (m *Monitor) follow(ctx context.Context) error {
	hctx, cancel := context.WithCancel(ctx)
	defer cancel()
	heard, errs := m.cfg.Client.EventService().Subscribe(hctx,
		`topic=="/tasks/exit"`, `topic=="/tasks/delete"`, `topic~="^/containers/"`)
	if err := m.scan(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case env := <-heard:
			m.hear(env)
		case r := <-m.results:
			m.finish(r)
		case <-timer.C:
		case err := <-errs:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		timer.Reset(m.attend(ctx))
	}
}

// scan plans a look at every container that has the label, at once: what a
// reboot or the end of a daemon has stopped is due.
func (m *Monitor) scan(ctx context.Context) error {
	return m.each(ctx, func(_ context.Context, ns string, c client.Container) error {
		m.plan(key{ns, c.ID()}, 0, true)
		return nil
	})
}

// each visits the containers of all namespaces that have the label.
func (m *Monitor) each(ctx context.Context, visit func(context.Context, string, client.Container) error) error {
	all, err := m.cfg.Client.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, ns := range all {
		ctx := namespaces.WithNamespace(ctx, ns)
		cs, err := m.cfg.Client.Containers(ctx, fmt.Sprintf("labels.%q", restart.StatusLabel))
		if err != nil {
			return fmt.Errorf("list containers of namespace %s: %w", ns, err)
		}
		for _, c := range cs {
			if err := visit(ctx, ns, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// forgetStops clears the mark of a stop on purpose where the policy is
// "always".
func (m *Monitor) forgetStops(ctx context.Context) {
	err := m.each(ctx, func(ctx context.Context, ns string, c client.Container) error {
		labels, err := c.Labels(ctx)
		if err != nil {
			return err
		}
		stopped, _ := strconv.ParseBool(labels[restart.ExplicitlyStoppedLabel])
		policy, err := restart.NewPolicy(labels[restart.PolicyLabel])
		if err != nil || !stopped || policy.Name() != "always" {
			return nil // a policy that is none is told of when it matters
		}
		return c.Update(ctx, client.UpdateContainerOpts(client.WithAdditionalContainerLabels(
			map[string]string{restart.ExplicitlyStoppedLabel: "false"})))
	})
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.Error("containers to be restarted always could not be listed", slog.Any("error", err))
	}
}

// hear plans what an event asks for. Which containers have the labels is known
// from their records' events, so that a task of another container costs nothing.
func (m *Monitor) hear(env *eventtypes.Envelope) {
	event, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		return // somebody else's event under this topic
	}
	switch e := event.(type) {
	case *events.TaskExit:
		if k := (key{env.Namespace, e.ContainerID}); e.ID == e.ContainerID && m.watched[k] != nil {
			m.plan(k, 0, false)
		}
	case *events.TaskDelete:
		if k := (key{env.Namespace, e.ContainerID}); m.watched[k] != nil {
			m.plan(k, m.cfg.Settle, true)
		}
	case *events.ContainerCreate:
		m.plan(key{env.Namespace, e.ID}, 0, false)
	case *events.ContainerUpdate:
		m.plan(key{env.Namespace, e.ID}, 0, false)
	case *events.ContainerDelete:
		delete(m.watched, key{env.Namespace, e.ID})
	}
}

// plan makes a container due after a delay, unless it is due before.
func (m *Monitor) plan(k key, delay time.Duration, settled bool) {
	w := m.watched[k]
	if w == nil {
		w = &watch{}
		m.watched[k] = w
	}
	if w.busy {
		w.again = true
		return
	}
	due := time.Now().Add(delay)
	if w.due.IsZero() || due.Before(w.due) {
		w.due, w.settled = due, settled
	}
}

// attend sets workers to what is due and says when to look again.
func (m *Monitor) attend(ctx context.Context) time.Duration {
	now, next := time.Now(), time.Hour
	for k, w := range m.watched {
		switch {
		case w.busy || w.due.IsZero():
		case w.due.After(now):
			next = min(next, w.due.Sub(now))
		case m.busy >= attempts: // the next result makes room
		default:
			m.begin(ctx, k, w)
		}
	}
	return next
}

func (m *Monitor) begin(ctx context.Context, k key, w *watch) {
	settled, before := w.settled, w.history
	w.busy, w.again, w.due = true, false, time.Time{}
	m.busy++
	m.workers.Go(func() {
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, k.namespace), attemptTimeout)
		defer cancel()
		f, err := m.look(ctx, k, settled, before)
		m.results <- result{k, f, err}
	})
}

// finish notes what a worker has found.
func (m *Monitor) finish(r result) {
	m.busy--
	w := m.watched[r.key]
	if w == nil {
		return // its record is gone
	}
	w.busy = false
	log := m.cfg.Log.With("namespace", r.key.namespace, "container", r.key.id)
	switch {
	case errors.Is(r.err, context.Canceled): // the daemon stops
	case r.err != nil:
		log.Warn("container is not in the state that its labels ask for; it is tried again", "error", r.err)
		wait := m.delay(w.history.fails)
		w.history.fails++
		w.history.notBefore = time.Now().Add(wait)
		m.plan(r.key, wait, true)
	case r.verdict == started:
		w.history.fails++
		if r.lasted {
			w.history.fails = 1
		}
		w.history.started, w.history.notBefore = time.Now(), time.Time{}
		log.Info("container restarted", "streak", w.history.fails)
	case r.verdict == later:
		m.plan(r.key, r.wait, true)
	case r.verdict == unwatched && !w.again:
		delete(m.watched, r.key)
	}
	if w.again {
		w.again = false
		m.plan(r.key, 0, false)
	}
}

// delay is the time from an exit to the restart after so many that did not last.
func (m *Monitor) delay(fails int) time.Duration {
	wait := m.cfg.MinDelay
	for range min(fails, 20) {
		wait = min(2*wait, m.cfg.MaxDelay)
	}
	return wait
}
