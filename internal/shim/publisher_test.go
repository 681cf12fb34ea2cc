package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	eventsAPI "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/task"
)

// daemon takes events, and can be there or away.
type daemon struct {
	path string
	// refuse says of an event's container what becomes of it.
	refuse func(ctx context.Context, id string) error

	mu  sync.Mutex
	got []string // "<namespace> <topic> <container>", guarded by mu
}

func (d *daemon) Forward(ctx context.Context, r *eventsAPI.ForwardRequest) (*emptypb.Empty, error) {
	v, err := typeurl.UnmarshalAny(r.Envelope.Event)
	if err != nil {
		return nil, err
	}
	id := v.(interface{ GetContainerID() string }).GetContainerID()
	if d.refuse != nil {
		if err := d.refuse(ctx, id); err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, r.Envelope.Namespace+" "+r.Envelope.Topic+" "+id)
	return &emptypb.Empty{}, nil
}

func (d *daemon) events() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.got)
}

// come serves until the returned function is called.
func (d *daemon) come(t *testing.T) (leave func()) {
	t.Helper()
	srv := newServer(t)
	eventsAPI.RegisterTTRPCEventsService(srv, d)
	return serveRPC(t, d.path, srv)
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	return &daemon{path: filepath.Join(socketDir(t), "d")}
}

// started are the events of containers c<from> to c<to>, without the latter.
func started(p *publisher, from, to int) (want []string) {
	for i := from; i < to; i++ {
		id := fmt.Sprintf("c%d", i)
		p.Emit(task.Event{Kind: task.EventStart, ID: task.ID{Namespace: "ns", Container: id}, Pid: 1})
		want = append(want, "ns /tasks/start "+id)
	}
	return want
}

func closeWithin(t *testing.T, p *publisher, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return p.Close(ctx)
}

// A daemon that goes and comes gets every event, each after the one before it.
func TestPublisherKeepsOrder(t *testing.T) {
	d := newDaemon(t)
	p := newPublisher("unix://"+d.path, "", slog.New(slog.DiscardHandler))
	want := started(p, 0, 5) // before the daemon is there
	leave := d.come(t)
	await(t, "the first events", func() bool { return len(d.events()) == 5 })
	leave()
	want = append(want, started(p, 5, 10)...)
	d.come(t)
	want = append(want, started(p, 10, 15)...)
	if err := closeWithin(t, p, limit); err != nil {
		t.Error(err)
	}
	// One whose answer was lost with the daemon comes again.
	if got := slices.Compact(d.events()); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// dials counts connections.
type dials struct{ atomic.Int32 }

func (c *dials) Handshake(_ context.Context, conn net.Conn) (net.Conn, any, error) {
	c.Add(1)
	return conn, nil, nil
}

// A connection is not used for ever: what the daemon's ttrpc server leaks on one
// is bounded.
func TestPublisherRenewsItsConnection(t *testing.T) {
	d := newDaemon(t)
	var made dials
	srv := newServer(t, ttrpc.WithServerHandshaker(&made))
	eventsAPI.RegisterTTRPCEventsService(srv, d)
	serveRPC(t, d.path, srv)
	p := newPublisher(d.path, "", slog.New(slog.DiscardHandler))
	want := started(p, 0, 2*connectionEvents+1)
	if err := closeWithin(t, p, time.Minute); err != nil {
		t.Error(err)
	}
	// On a machine that stands still an event is sent again, on one connection more.
	if got := slices.Compact(d.events()); !slices.Equal(got, want) {
		t.Errorf("%d events of %d, or in another order", len(got), len(want))
	}
	if n := made.Load(); n < 3 {
		t.Errorf("%d connections for %d events, want 3", n, len(want))
	}
}

func TestPublisherDropsWhatIsRefused(t *testing.T) {
	var log logBuffer
	d := newDaemon(t)
	var tries int // of the call that fails for the moment; one call at a time
	d.refuse = func(_ context.Context, id string) error {
		switch id {
		case "c0", "c2":
			return fmt.Errorf("not this one: %w", errdefs.ErrInvalidArgument)
		case "c3":
			if tries++; tries < 3 {
				return fmt.Errorf("not now: %w", errdefs.ErrUnavailable)
			}
		}
		return nil
	}
	d.come(t)
	p := newPublisher(d.path, "", log.logger())
	want := started(p, 0, 5)
	if err := closeWithin(t, p, limit); err != nil {
		t.Error(err)
	}
	want = []string{want[1], want[3], want[4]}
	if got := d.events(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if n := strings.Count(log.String(), "refuses"); n != 2 {
		t.Errorf("%d lines of refusals:\n%s", n, log.String())
	}
}

// An event too large for the protocol does not hold up those behind it.
func TestPublisherDropsTheOversized(t *testing.T) {
	d := newDaemon(t)
	d.come(t)
	p := newPublisher(d.path, "", slog.New(slog.DiscardHandler))
	p.Emit(task.Event{Kind: task.EventCreate, ID: task.ID{Namespace: "ns", Container: "big"}, Bundle: strings.Repeat("x", 5<<20)})
	want := started(p, 0, 1)
	if err := closeWithin(t, p, limit); err != nil {
		t.Error(err)
	}
	if got := d.events(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// While the daemon is away the oldest go, and the log says how many.
func TestPublisherQueueIsBounded(t *testing.T) {
	var log logBuffer
	d := newDaemon(t)
	p := newPublisher(d.path, "", log.logger())
	const more = 10
	want := started(p, 0, maxQueue+more)[more:]
	p.mu.Lock()
	n := len(p.queue)
	p.mu.Unlock()
	if n != maxQueue {
		t.Fatalf("%d events wait", n)
	}
	d.come(t)
	if err := closeWithin(t, p, 3*limit); err != nil {
		t.Error(err)
	}
	if got := d.events(); !slices.Equal(got, want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	if !strings.Contains(log.String(), fmt.Sprintf("count=%d", more)) {
		t.Errorf("the log says:\n%s", log.String())
	}
}

// Close waits no longer than it was told, also for a daemon that has taken the
// call and does not answer.
func TestPublisherCloseIsBounded(t *testing.T) {
	t.Run("away", func(t *testing.T) {
		p := newPublisher(newDaemon(t).path, "", slog.New(slog.DiscardHandler))
		started(p, 0, 3)
		checkClose(t, p, "3 events not delivered")
	})
	t.Run("silent", func(t *testing.T) {
		d := newDaemon(t)
		asked, answer := make(chan struct{}, 1), make(chan struct{})
		d.refuse = func(context.Context, string) error {
			asked <- struct{}{}
			<-answer
			return nil
		}
		d.come(t)
		defer close(answer)
		p := newPublisher(d.path, "", slog.New(slog.DiscardHandler))
		started(p, 0, 1)
		<-asked
		checkClose(t, p, "1 events not delivered")
	})
}

func checkClose(t *testing.T, p *publisher, want string) {
	t.Helper()
	begin := time.Now()
	err := closeWithin(t, p, 50*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > forwardTime/2 {
		t.Errorf("took %s", took)
	}
}

func TestPublisherWithoutAddress(t *testing.T) {
	p := newPublisher("", "", slog.New(slog.DiscardHandler))
	started(p, 0, 3)
	if len(p.queue) > 0 {
		t.Error("events wait for nobody")
	}
	if err := closeWithin(t, p, limit); err != nil {
		t.Error(err)
	}
}
