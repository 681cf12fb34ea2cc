package events

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
)

// subscription is one subscriber's queue.
type subscription struct {
	filter filters.Filter // nil for all; set before use
	limit  Config

	// wake has room for one: a push that finds it full leaves the news to the
	// one that is there already.
	wake chan struct{}
	// ended is closed when err is set.
	ended chan struct{}

	mu    sync.Mutex
	queue []*events.Envelope // guarded by mu
	bytes int                // sum of the queue's payloads; guarded by mu
	err   error              // why the subscription ended; guarded by mu
}

func newSubscription(limit Config) *subscription {
	return &subscription{limit: limit, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// push queues an event, or ends a subscription whose queue is full.
func (s *subscription) push(env *events.Envelope) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	size := payloadSize(env)
	if len(s.queue) >= s.limit.QueueEvents || s.bytes+size > s.limit.QueueBytes {
		s.endLocked(fmt.Errorf("event subscriber is too slow: %d events (%d bytes) are waiting; subscribe again: %w",
			len(s.queue), s.bytes, errdefs.ErrResourceExhausted))
		return
	}
	s.queue = append(s.queue, env)
	s.bytes += size
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscription) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

func (s *subscription) endLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	s.queue, s.bytes = nil, 0
	close(s.ended)
}

// take returns the oldest event, or nil.
func (s *subscription) take() *events.Envelope {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return nil
	}
	env := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	if len(s.queue) == 0 {
		s.queue = nil
	}
	s.bytes -= payloadSize(env)
	return env
}

// pump moves events from the queue to ch until the subscription or ctx ends.
func (s *subscription) pump(ctx context.Context, ch chan<- *events.Envelope) error {
	for {
		env := s.take()
		if env == nil {
			select {
			case <-s.wake:
				continue
			case <-s.ended:
				return s.reason()
			case <-ctx.Done():
				return s.cancelled(ctx)
			}
		}
		select {
		case ch <- env:
		case <-s.ended:
			return s.reason()
		case <-ctx.Done():
			return s.cancelled(ctx)
		}
	}
}

func (s *subscription) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// cancelled says how a subscription ends whose context did: silently when the
// subscriber itself gave up.
func (s *subscription) cancelled(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func payloadSize(env *events.Envelope) int {
	size := len(env.Topic) + len(env.Namespace)
	if env.Event != nil {
		size += len(env.Event.GetTypeUrl()) + len(env.Event.GetValue())
	}
	return size
}
