package storage

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"
)

// fakeDB counts collections.
type fakeDB struct {
	mu sync.Mutex
	// All below is guarded by mu.
	changed func(bool)
	runs    int
	err     error

	// pause is what a collection takes.
	pause time.Duration
	// hold, if set, blocks a collection until it is closed or the context ends.
	hold chan struct{}
}

type fakeStats time.Duration

func (s fakeStats) Elapsed() time.Duration { return time.Duration(s) }

func (f *fakeDB) RegisterMutationCallback(fn func(bool)) { f.changed = fn }

func (f *fakeDB) GarbageCollect(ctx context.Context) (gc.Stats, error) {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs++
	return fakeStats(f.pause), f.err
}

func (f *fakeDB) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs
}

func (f *fakeDB) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// startCollector runs a collector in the bubble of the test.
func startCollector(t *testing.T, db *fakeDB, cfg GCConfig) *Collector {
	t.Helper()
	c := newCollector(db, func(context.Context) error { return nil }, cfg, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// after lets the bubble's time pass and compares the number of collections.
func after(t *testing.T, db *fakeDB, d time.Duration, want int) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got := db.count(); got != want {
		t.Errorf("%d collections, want %d", got, want)
	}
}

func TestCollectsOnceAfterTheStartAndThenSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{}
		startCollector(t, db, GCConfig{})
		after(t, db, 99*time.Millisecond, 0)
		after(t, db, 2*time.Millisecond, 1)
		after(t, db, time.Hour, 1)
	})
}

func TestADeletionIsCollectedWithinThePauseThreshold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{pause: 20 * time.Millisecond}
		startCollector(t, db, GCConfig{})
		after(t, db, 101*time.Millisecond, 1)
		db.changed(true)
		// 20 ms are 2% of a second.
		after(t, db, 970*time.Millisecond, 1)
		after(t, db, 20*time.Millisecond, 2)
		after(t, db, time.Hour, 2)
		db.changed(true)
		after(t, db, time.Millisecond, 3)
	})
}

func TestChangesWithoutADeletionAreCollectedByNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{}
		startCollector(t, db, GCConfig{MutationThreshold: 10})
		after(t, db, time.Second, 1)
		for range 9 {
			db.changed(false)
		}
		after(t, db, time.Hour, 1)
		db.changed(false)
		after(t, db, time.Millisecond, 2)
	})
}

func TestDeletionThresholdDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{pause: time.Second}
		startCollector(t, db, GCConfig{DeletionThreshold: 2, ScheduleDelay: 10 * time.Millisecond})
		after(t, db, 101*time.Millisecond, 1)
		db.changed(true)
		after(t, db, time.Second, 1)
		db.changed(true)
		after(t, db, 9*time.Millisecond, 1)
		after(t, db, 2*time.Millisecond, 2)
	})
}

func TestScheduleAndWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{}
		c := startCollector(t, db, GCConfig{StartupDelay: -1})
		after(t, db, time.Hour, 0)
		if _, err := c.ScheduleAndWait(t.Context()); err != nil {
			t.Fatal(err)
		}
		after(t, db, 0, 1)

		boom := errors.New("disk full")
		db.fail(boom)
		if _, err := c.ScheduleAndWait(t.Context()); !errors.Is(err, boom) {
			t.Errorf("error %v, want %v", err, boom)
		}
		db.fail(nil)
		// What could not be collected is tried again without being asked.
		after(t, db, 2*time.Second, 3)
	})
}

func TestAWaiterIsNotServedByACollectionUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{hold: make(chan struct{})}
		c := startCollector(t, db, GCConfig{})
		time.Sleep(time.Second) // the first collection is held
		synctest.Wait()
		done := make(chan error, 1)
		go func() {
			_, err := c.ScheduleAndWait(t.Context())
			done <- err
		}()
		synctest.Wait()
		close(db.hold)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		after(t, db, 0, 2)
	})
}

func TestWaitersEndWithTheirContextAndWithTheCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &fakeDB{hold: make(chan struct{})}
		c := startCollector(t, db, GCConfig{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.ScheduleAndWait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want DeadlineExceeded", err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := c.ScheduleAndWait(t.Context())
			done <- err
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errdefs.IsUnavailable(err) {
			t.Errorf("error %v, want Unavailable", err)
		}
		if _, err := c.ScheduleAndWait(t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("after Close: %v, want Unavailable", err)
		}
	})
}
