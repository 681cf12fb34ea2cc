package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	eventsAPI "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/task"
)

const (
	// maxQueue bounds the events that wait for a daemon that is away; the
	// oldest go first.
	maxQueue = 16384
	// connectionEvents is how many events go over one connection. ttrpc's server
	// (v1.2.9) keeps the stream of a request that is answered before it is noted,
	// some of a thousand, until the connection ends.
	connectionEvents = 4096
	forwardTime      = 5 * time.Second
	minRetryPause    = 20 * time.Millisecond
	maxRetryPause    = 5 * time.Second
)

// publisher sends events to the daemon, one after the other: an event that
// cannot be sent holds up those behind it, so they never overtake each other.
type publisher struct {
	address string // of the daemon's ttrpc socket; empty: nobody wants events
	log     *slog.Logger
	wg      sync.WaitGroup
	wake    chan struct{}
	cancel  context.CancelFunc // ends run, and the call that it is in

	mu      sync.Mutex
	queue   []*types.Envelope // guarded by mu
	dropped int               // guarded by mu
	journal *journal          // of the queue, guarded by mu; nil: no successor will read it
	drained chan struct{}     // closed when the queue empties, guarded by mu; nil: nobody waits
	// last is the time of the last event in nanoseconds: no two have the same,
	// so that one which comes twice is known as such. Guarded by mu.
	last int64
	// told is when the events of a predecessor were emitted, by telling, until
	// settled. Guarded by mu.
	told map[string]int64
}

// newPublisher goes on with what a predecessor left in the journal, a file;
// without a path there is none.
func newPublisher(address, journal string, log *slog.Logger) *publisher {
	ctx, cancel := context.WithCancel(context.Background())
	p := &publisher{
		address: strings.TrimPrefix(address, "unix://"), log: log,
		wake: make(chan struct{}, 1), cancel: cancel,
	}
	if journal != "" && p.address != "" {
		p.goOn(journal)
	}
	if p.address != "" {
		p.wg.Go(func() { p.run(ctx) })
	}
	return p
}

// goOn takes over from a predecessor. p is not shared yet.
func (p *publisher) goOn(path string) {
	j, events, unsent, err := openJournal(path)
	if err != nil {
		p.log.Error("events that are not sent will not outlive this shim", "error", err)
		return
	}
	p.journal, p.last, p.told = j, j.horizon, map[string]int64{}
	for _, e := range events {
		p.last = max(p.last, e.Timestamp.AsTime().UnixNano())
		p.told[telling(e.Namespace, e.Topic, e.Event.GetValue())] = p.last
	}
	p.queue = events[len(events)-unsent:]
}

// telling is what makes two events the same but for their times.
func telling(namespace, topic string, event []byte) string {
	return namespace + " " + topic + " " + string(event)
}

// Told implements container.Events. A journal that does not reach back to the
// time says that the event was told: it was emitted soon after.
func (p *publisher) Told(e task.Event, since time.Time) bool {
	event, err := typeurl.MarshalAnyToProto(eventMessage(e))
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || p.journal == nil || since.UnixNano() <= p.journal.horizon {
		return true
	}
	at, ok := p.told[telling(e.ID.Namespace, e.Kind.Topic(), event.GetValue())]
	return ok && at >= since.UnixNano()
}

// settled says that Told is not asked any more.
func (p *publisher) settled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = nil
}

// Emit implements task.EventSink.
func (p *publisher) Emit(e task.Event) {
	if p.address == "" {
		return
	}
	event, err := typeurl.MarshalAnyToProto(eventMessage(e))
	if err != nil {
		p.log.Error("encode an event", "topic", e.Kind.Topic(), "error", err)
		return
	}
	p.mu.Lock()
	if len(p.queue) >= maxQueue {
		p.takeLocked()
		p.dropped++
	}
	p.last = max(p.last+1, time.Now().UnixNano())
	envelope := &types.Envelope{
		Timestamp: timestamppb.New(time.Unix(0, p.last)), Namespace: e.ID.Namespace, Topic: e.Kind.Topic(), Event: event,
	}
	p.queue = append(p.queue, envelope)
	if p.journal != nil {
		p.noteLocked(p.journal.add(envelope))
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// takeLocked takes the oldest event off the queue. The caller holds mu.
func (p *publisher) takeLocked() {
	e := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	if p.journal != nil {
		p.noteLocked(p.journal.sent(e))
	}
}

// noteLocked gives a journal up that cannot be written. The caller holds mu.
func (p *publisher) noteLocked(err error) {
	if err == nil {
		return
	}
	p.log.Error("events that are not sent will not outlive this shim", "error", errors.Join(err, p.journal.abandon()))
	p.journal = nil
}

func (p *publisher) head() *types.Envelope {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		if p.drained != nil {
			close(p.drained)
			p.drained = nil
		}
		return nil
	}
	return p.queue[0]
}

// sent takes the event off the queue, unless it was dropped meanwhile.
func (p *publisher) sent(e *types.Envelope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 && p.queue[0] == e {
		p.takeLocked()
	}
	if p.dropped > 0 {
		p.log.Error("events were dropped while the daemon was away", "count", p.dropped)
		p.dropped = 0
	}
}

func (p *publisher) run(ctx context.Context) {
	var client *ttrpc.Client
	defer func() {
		if client != nil {
			client.Close()
		}
	}()
	pause, events := minRetryPause, 0
	for {
		e := p.head()
		if e == nil {
			select {
			case <-p.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		var err error
		if client, err = p.forward(ctx, client, e); err == nil || refused(err) {
			if err != nil {
				p.log.Error("the daemon refuses an event", "topic", e.Topic, "error", err)
			}
			p.sent(e)
			pause = minRetryPause
			if events++; events%connectionEvents == 0 && client != nil {
				client.Close()
				client = nil
			}
			continue
		}
		retry := time.NewTimer(pause)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return
		}
		pause = min(2*pause, maxRetryPause)
	}
}

// refused says that the daemon will not take this event at a later try either.
func refused(err error) bool {
	var oversized *ttrpc.OversizedMessageErr
	code := status.Code(err)
	return code == codes.InvalidArgument || code == codes.FailedPrecondition || errors.As(err, &oversized)
}

// forward returns the client to use next: nil after a failure, so that the
// next try connects anew.
func (p *publisher) forward(ctx context.Context, client *ttrpc.Client, e *types.Envelope) (*ttrpc.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	if client == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", p.address)
		if err != nil {
			return nil, err
		}
		client = ttrpc.NewClient(conn)
	}
	_, err := eventsAPI.NewTTRPCEventsClient(client).Forward(ctx, &eventsAPI.ForwardRequest{Envelope: e})
	if err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// Close waits until everything is sent, for at most as long as ctx lasts.
func (p *publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	drained := make(chan struct{})
	if len(p.queue) == 0 || p.address == "" {
		close(drained)
	} else {
		p.drained = drained
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		p.mu.Lock()
		err = fmt.Errorf("%d events not delivered: %w", len(p.queue), ctx.Err())
		p.mu.Unlock()
	}
	p.cancel()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.journal != nil {
		err = errors.Join(err, p.journal.f.Close())
		p.journal = nil
	}
	return err
}
