package storage

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// fakeStream says how often it was closed.
type fakeStream struct{ closed int }

func (*fakeStream) Send(typeurl.Any) error                { return nil }
func (*fakeStream) Recv() (typeurl.Any, error)            { return nil, io.EOF }
func (f *fakeStream) Close() error                        { f.closed++; return nil }
func (s *Streams) has(ctx context.Context, n string) bool { _, err := s.Get(ctx, n); return err == nil }

func TestStreamsByNameAndNamespace(t *testing.T) {
	s := newStreams()
	ctx := testContext(t)
	st := &fakeStream{}
	if err := s.Register(ctx, "a", st); err != nil {
		t.Fatal(err)
	}
	if err := s.Register(ctx, "a", &fakeStream{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second register: %v, want AlreadyExists", err)
	}
	for _, name := range []string{"", strings.Repeat("x", maxStreamName+1)} {
		if err := s.Register(ctx, name, st); !errdefs.IsInvalidArgument(err) {
			t.Errorf("name of %d bytes: %v, want InvalidArgument", len(name), err)
		}
	}
	if err := s.Register(t.Context(), "a", st); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: %v, want FailedPrecondition", err)
	}
	if _, err := s.Get(namespaces.WithNamespace(t.Context(), "other"), "a"); !errdefs.IsNotFound(err) {
		t.Errorf("get from another namespace: %v, want NotFound", err)
	}
	got, err := s.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Close(); err != nil || st.closed != 1 {
		t.Errorf("close: %v, closed %d times", err, st.closed)
	}
	if _, err := s.Get(ctx, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("get after close: %v, want NotFound", err)
	}
}

func TestUnregisterLeavesASuccessor(t *testing.T) {
	s := newStreams()
	ctx := testContext(t)
	first, second := &fakeStream{}, &fakeStream{}
	for _, st := range []*fakeStream{first, second} {
		if err := s.Register(ctx, "a", st); err != nil {
			t.Fatal(err)
		}
		s.Unregister(ctx, "a", first)
	}
	if !s.has(ctx, "a") {
		t.Error("the second stream went with the first one")
	}
	s.Unregister(ctx, "a", second)
	if s.has(ctx, "a") {
		t.Error("the second stream is still there")
	}
	if first.closed+second.closed > 0 {
		t.Error("unregister closed a stream")
	}
}

// A stream opened under a lease goes with the lease; one without stays.
func TestStreamsGoWithTheirLease(t *testing.T) {
	store := openStore(t, Config{})
	ctx := testContext(t)
	// A namespace is known to the database once there is something in it.
	l, err := store.Leases.Create(ctx, leases.WithID("l"))
	if err != nil {
		t.Fatal(err)
	}
	leased, free := &fakeStream{}, &fakeStream{}
	if err := store.Streams.Register(leases.WithLease(ctx, l.ID), "leased", leased); err != nil {
		t.Fatal(err)
	}
	if err := store.Streams.Register(ctx, "free", free); err != nil {
		t.Fatal(err)
	}
	if _, err := store.GC.ScheduleAndWait(ctx); err != nil {
		t.Fatal(err)
	}
	if !store.Streams.has(ctx, "leased") || !store.Streams.has(ctx, "free") {
		t.Fatal("a stream went although its lease is there")
	}
	if err := store.Leases.Delete(ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if store.Streams.has(ctx, "leased") || leased.closed != 1 {
		t.Errorf("the leased stream is still there, or was closed %d times", leased.closed)
	}
	if !store.Streams.has(ctx, "free") || free.closed != 0 {
		t.Error("the stream without lease went too")
	}
}

func TestKeyLock(t *testing.T) {
	var k keyLock
	ctx := testContext(t)
	if err := k.Lock(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := k.Lock(ctx, "b"); err != nil { // another key is free
		t.Fatal(err)
	}
	k.Unlock("b")

	gone, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("gave up"))
	if err := k.Lock(gone, "a"); err == nil || err.Error() != "gave up" {
		t.Errorf("error %v, want the context's cause", err)
	}

	const n = 50
	inside, done := 0, make(chan struct{})
	for range n {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := k.Lock(ctx, "a"); err != nil {
				t.Error(err)
				return
			}
			inside++ // the race detector sees it if two are inside
			k.Unlock("a")
		}()
	}
	k.Unlock("a")
	for range n {
		<-done
	}
	if inside != n || len(k.held) != 0 {
		t.Errorf("%d of %d were inside, %d keys left", inside, n, len(k.held))
	}
}
