package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	eventsAPI "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/events"
	"github.com/berthd/berth/task"
)

// What a shim has not sent when it is killed, its successor sends: everything,
// once, before its own. It is killed at any byte of a write.
func TestJournal(t *testing.T) {
	d := newDaemon(t)
	path := filepath.Join(t.TempDir(), "events")
	leave := d.come(t)
	killed := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	want := started(killed, 0, 3)
	await(t, "the first events", func() bool {
		killed.mu.Lock()
		defer killed.mu.Unlock()
		return len(d.events()) == 3 && len(killed.queue) == 0 // they are marked as sent, too
	})
	leave()
	want = append(want, started(killed, 3, 7)...)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := closeWithin(t, killed, time.Millisecond); err == nil {
		t.Error("all was sent to nobody")
	}
	d.come(t)
	for cut := range 20 {
		if err := os.WriteFile(path, data[:len(data)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		before := len(d.events())
		next := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
		expect := append(slices.Clone(want[3:7-min(cut, 1)]), started(next, 7, 9)...)
		if err := closeWithin(t, next, limit); err != nil {
			t.Error(err)
		}
		if got := d.events()[before:]; !slices.Equal(got, expect) {
			t.Errorf("cut by %d: got  %q\nwant %q", cut, got, expect)
		}
		if _, _, unsent, err := openJournal(path); err != nil || unsent != 0 {
			t.Errorf("%d events are left (%v)", unsent, err)
		}
	}
}

// A file that is no journal costs what is in it, and no more.
func TestJournalGarbage(t *testing.T) {
	for _, text := range []string{"", "x", "\x00\x00\x00\x00\x00\x00\x00\x08\xff\xff\xff\xff", "no journal at all, but text"} {
		d := newDaemon(t)
		path := filepath.Join(t.TempDir(), "events")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d.come(t)
		p := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
		want := started(p, 0, 3)
		if err := closeWithin(t, p, limit); err != nil {
			t.Error(err)
		}
		if got := d.events(); !slices.Equal(got, want) {
			t.Errorf("after %q: %q", text, got)
		}
	}
}

// A successor knows what was told, sent or not, also when the journal was cut
// short meanwhile; and of times from which nothing is left it says so too.
func TestJournalTold(t *testing.T) {
	d := newDaemon(t)
	path := filepath.Join(t.TempDir(), "events")
	d.come(t)
	killed := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	begin := time.Now()
	const all, step = 8000, 2000 // some 600 KiB
	var want []string
	for n := 0; n < all; n += step {
		want = append(want, started(killed, n, n+step)...)
		await(t, "the events", func() bool { return len(d.events()) == n+step })
	}
	end := time.Now()
	if err := closeWithin(t, killed, limit); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > compactAt {
		t.Errorf("a journal of %d bytes (%v)", st.Size(), err)
	}
	told := func(p *publisher, n int, since time.Time) bool {
		return p.Told(task.Event{Kind: task.EventStart, ID: task.ID{Namespace: "ns", Container: fmt.Sprintf("c%d", n)}, Pid: 1}, since)
	}
	next := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	for n, since := range map[int]time.Time{0: begin, all: begin, all - 1: time.Unix(0, next.journal.horizon+1)} {
		if !told(next, n, since) {
			t.Errorf("c%d: not told", n)
		}
	}
	if told(next, all-1, end) || told(next, all, end) {
		t.Error("what never was is told")
	}
	if err := closeWithin(t, next, limit); err != nil {
		t.Error(err)
	}
	if got := d.events(); !slices.Equal(got, want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	// A journal that cannot be written is no witness.
	if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	after := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	if !told(after, all-1, end) {
		t.Error("told a second time for want of a journal")
	}
	if err := closeWithin(t, after, limit); err != nil {
		t.Error(err)
	}
}

// mortal is a daemon that is killed over some events: before they are
// published, or before their sender has its answer.
type mortal struct {
	once   *events.Once
	killed chan struct{}
	deaths map[string]bool // "before c1", "after c2": to be died still
}

func (m *mortal) Forward(ctx context.Context, r *eventsAPI.ForwardRequest) (*emptypb.Empty, error) {
	v, err := typeurl.UnmarshalAny(r.Envelope.Event)
	if err != nil {
		return nil, err
	}
	id := v.(interface{ GetContainerID() string }).GetContainerID()
	die := func(when string) bool {
		due := m.deaths[when+" "+id]
		if due {
			delete(m.deaths, when+" "+id)
			m.killed <- struct{}{}
			<-ctx.Done()
		}
		return due
	}
	if die("before") {
		return nil, ctx.Err()
	}
	err = m.once.Forward(ctx, &coreevents.Envelope{
		Timestamp: r.Envelope.Timestamp.AsTime(), Namespace: r.Envelope.Namespace, Topic: r.Envelope.Topic, Event: r.Envelope.Event,
	})
	die("after")
	return &emptypb.Empty{}, err
}

// subscriber sees what is published, whichever daemon does it.
type subscriber struct {
	mu  sync.Mutex
	got []string // guarded by mu
}

func (s *subscriber) Forward(_ context.Context, e *coreevents.Envelope) error {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, e.Namespace+" "+e.Topic+" "+v.(interface{ GetContainerID() string }).GetContainerID())
	return nil
}

// Daemon and shim are killed over the same events, at every point between the
// journal and the answer: each event is published once, in order.
func TestEventsOnceOverDeathsOfTheDaemon(t *testing.T) {
	dir := t.TempDir()
	var sub subscriber
	d := newDaemon(t)
	deaths := map[string]bool{"before c1": true, "after c2": true, "before c3": true, "after c3": true, "after c5": true}
	times, killed := len(deaths), make(chan struct{})
	boot := func() (kill func()) {
		once, err := events.OpenOnce(filepath.Join(dir, "forwarded"), &sub, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		srv := newServer(t)
		eventsAPI.RegisterTTRPCEventsService(srv, &mortal{once: once, killed: killed, deaths: deaths})
		leave := serveRPC(t, d.path, srv)
		return func() {
			leave()
			if err := once.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	kill := boot()
	journal := filepath.Join(dir, "events")
	p := newPublisher(d.path, journal, slog.New(slog.DiscardHandler))
	want := started(p, 0, 8)
	for range times {
		select {
		case <-killed:
		case <-time.After(limit):
			t.Fatal("the daemon was not killed")
		}
		kill()
		// The shim too: what it has not been answered is sent by the next.
		if err := closeWithin(t, p, time.Millisecond); err == nil {
			t.Error("all is sent")
		}
		kill = boot()
		p = newPublisher(d.path, journal, slog.New(slog.DiscardHandler))
	}
	if err := closeWithin(t, p, limit); err != nil {
		t.Error(err)
	}
	kill()
	if !slices.Equal(sub.got, want) {
		t.Errorf("got  %q\nwant %q", sub.got, want)
	}
}

// Events are known again that were stored as JSON, as the records of containers
// hold them: every kind, with all that it says.
func TestToldOfStoredEvents(t *testing.T) {
	d := newDaemon(t)
	d.come(t)
	path := filepath.Join(t.TempDir(), "events")
	id := task.ID{Namespace: "ns", Container: "c"}
	exit := task.Exit{Pid: 7, Status: 42, At: time.Now(), OOMKilled: true, Reason: "why"}
	var all []task.Event
	for kind := task.EventCreate; kind <= task.EventDelete; kind++ {
		all = append(all, task.Event{
			Kind: kind, ID: id, ExecID: map[bool]string{true: "e"}[kind == task.EventExecAdded || kind == task.EventExecStarted],
			Pid: 7, Exit: exit, Bundle: "/b", Checkpoint: "/image",
			Rootfs: []task.Mount{{Type: "overlay", Source: "overlay", Target: "/t", Options: []string{"ro", "lowerdir=/a:/b"}}},
			Stdio:  task.Stdio{Stdin: "/in", Stdout: "/out", Stderr: "/err", Terminal: true},
		})
	}
	before := time.Now()
	killed := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		killed.Emit(e)
	}
	if err := closeWithin(t, killed, limit); err != nil {
		t.Fatal(err)
	}
	var stored []task.Event
	if err := json.Unmarshal(data, &stored); err != nil || len(stored) != len(all) {
		t.Fatal(err)
	}
	next := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	// The journal began a moment ago: it must have them, not just be too young.
	next.journal.horizon = 0
	for _, e := range stored {
		if !next.Told(e, before) {
			t.Errorf("%s is not known", e.Kind.Topic())
		}
		if next.Told(e, time.Now()) {
			t.Errorf("%s is known from the future", e.Kind.Topic())
		}
		e.ID.Container = "other"
		if next.Told(e, before) {
			t.Errorf("%s of another container is known", e.Kind.Topic())
		}
	}
	if err := closeWithin(t, next, limit); err != nil {
		t.Fatal(err)
	}
}
