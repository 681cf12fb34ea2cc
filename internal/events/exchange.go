// Package events carries events from those who publish them (the storage, the
// task service, shims) to those who subscribe: one exchange for a daemon.
//
// What a subscriber has not taken yet is kept for it, up to a bound. A
// subscriber that falls further behind is cut off and told so; it never slows
// a publisher down and never fills the daemon's memory.
package events

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

const (
	defaultQueueEvents = 16384
	defaultQueueBytes  = 32 << 20
)

// Config bounds what the exchange keeps for one subscriber.
type Config struct {
	// QueueEvents is the number of events that may wait for a subscriber; 0
	// means 16384.
	QueueEvents int
	// QueueBytes is the sum of the payloads of the waiting events; 0 means
	// 32 MiB.
	QueueBytes int
}

// Exchange hands every published event to every subscriber whose filters
// match, in the same order to all.
type Exchange struct {
	cfg Config

	mu     sync.Mutex
	subs   map[*subscription]struct{} // guarded by mu
	closed bool                       // guarded by mu

	running sync.WaitGroup // one for each subscription's goroutine
}

var (
	_ events.Publisher  = (*Exchange)(nil)
	_ events.Forwarder  = (*Exchange)(nil)
	_ events.Subscriber = (*Exchange)(nil)
)

// NewExchange makes an exchange. The caller ends it with Close.
func NewExchange(cfg Config) *Exchange {
	if cfg.QueueEvents <= 0 {
		cfg.QueueEvents = defaultQueueEvents
	}
	if cfg.QueueBytes <= 0 {
		cfg.QueueBytes = defaultQueueBytes
	}
	return &Exchange{cfg: cfg, subs: make(map[*subscription]struct{})}
}

// Publish sends an event of the context's namespace with the time of now. The
// event is a typeurl.Any or a type that typeurl knows. It does not wait for
// subscribers.
func (e *Exchange) Publish(ctx context.Context, topic string, event events.Event) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fmt.Errorf("publish event %q: %w", topic, err)
	}
	if err := validateTopic(topic); err != nil {
		return fmt.Errorf("publish event %q: %w", topic, err)
	}
	payload, err := typeurl.MarshalAny(event)
	if err != nil {
		return fmt.Errorf("publish event %q: %w", topic, err)
	}
	return e.send(&events.Envelope{Timestamp: time.Now().UTC(), Namespace: ns, Topic: topic, Event: payload})
}

// Forward sends an event that another process has published: its namespace,
// topic and time are kept. The exchange owns the envelope from here on.
func (e *Exchange) Forward(_ context.Context, env *events.Envelope) error {
	if err := validateEnvelope(env); err != nil {
		return fmt.Errorf("forward event: %w", err)
	}
	return e.send(env)
}

func (e *Exchange) send(env *events.Envelope) error {
	// Filters may decode the event: match them without the lock. A
	// subscription that begins or ends meanwhile is one that began after, or
	// ended before, this event.
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return errClosed
	}
	subs := make([]*subscription, 0, len(e.subs))
	for s := range e.subs {
		subs = append(subs, s)
	}
	e.mu.Unlock()

	matched := subs[:0]
	for _, s := range subs {
		if s.filter == nil || s.filter.Match(env) {
			matched = append(matched, s)
		}
	}

	// All queues are written under one lock: every subscriber sees one order.
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range matched {
		s.push(env)
	}
	return nil
}

// Subscribe returns the events that match any of the filters, or all without
// filters, from now on. The subscription ends with ctx, after an error, or
// with the exchange; then one value (nil when ctx was cancelled) comes on errs,
// which is closed. The event channel is never closed.
//
// A subscriber that is too slow ends with errdefs.ErrResourceExhausted; what
// was queued for it is dropped.
func (e *Exchange) Subscribe(ctx context.Context, fs ...string) (<-chan *events.Envelope, <-chan error) {
	ch := make(chan *events.Envelope)
	errs := make(chan error, 1)
	s, err := e.subscribe(fs)
	if err != nil {
		errs <- err
		close(errs)
		return ch, errs
	}
	go func() {
		defer e.running.Done()
		err := s.pump(ctx, ch)
		e.remove(s)
		errs <- err
		close(errs)
	}()
	return ch, errs
}

func (e *Exchange) subscribe(fs []string) (*subscription, error) {
	s := newSubscription(e.cfg)
	if len(fs) > 0 {
		filter, err := filters.ParseAll(fs...)
		if err != nil {
			return nil, fmt.Errorf("event filter: %w", err)
		}
		s.filter = filter
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	e.subs[s] = struct{}{}
	e.running.Add(1)
	return s, nil
}

func (e *Exchange) remove(s *subscription) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.subs, s)
}

// Close ends all subscriptions with errdefs.ErrUnavailable and waits for their
// goroutines. Publishing fails from here on. It is idempotent.
func (e *Exchange) Close() {
	e.mu.Lock()
	e.closed = true
	for s := range e.subs {
		s.end(errClosed)
	}
	e.mu.Unlock()
	e.running.Wait()
}

var errClosed = fmt.Errorf("event exchange is closed: %w", errdefs.ErrUnavailable)
