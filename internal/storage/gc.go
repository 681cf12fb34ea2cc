package storage

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"
)

// GCConfig says when garbage is collected. The zero value is what containerd
// does by default.
type GCConfig struct {
	// PauseThreshold bounds the share of time in which a collection stops
	// changes, by spacing collections: 0.02 is 20 ms of every second. 0 means
	// 0.02, more than 0.5 means 0.5, less than 0 spaces them by a second.
	PauseThreshold float64
	// DeletionThreshold asks for a collection at once after so many changes
	// since the first deletion. 0 means that deletions wait for their turn.
	DeletionThreshold int
	// MutationThreshold lets a collection take place after so many changes even
	// if nothing was deleted. 0 means 100, less than 0 never.
	MutationThreshold int
	// ScheduleDelay is the time from a request to the collection.
	ScheduleDelay time.Duration
	// StartupDelay is the time from Open to the first collection. 0 means
	// 100 ms, less than 0 leaves it to the first change.
	StartupDelay time.Duration
}

func (c *GCConfig) setDefaults() {
	switch {
	case c.PauseThreshold == 0:
		c.PauseThreshold = 0.02
	case c.PauseThreshold > 0.5:
		c.PauseThreshold = 0.5
	}
	if c.MutationThreshold == 0 {
		c.MutationThreshold = 100
	}
	if c.StartupDelay == 0 {
		c.StartupDelay = 100 * time.Millisecond
	}
	c.ScheduleDelay = max(c.ScheduleDelay, 0)
}

func (c *GCConfig) exports() map[string]string {
	return map[string]string{
		"PauseThreshold":    strconv.FormatFloat(c.PauseThreshold, 'g', -1, 64),
		"DeletionThreshold": strconv.Itoa(c.DeletionThreshold),
		"MutationThreshold": strconv.Itoa(c.MutationThreshold),
		"ScheduleDelay":     c.ScheduleDelay.String(),
	}
}

// spacing is the time to leave between two collections that take avg each.
func (c *GCConfig) spacing(avg time.Duration) time.Duration {
	if c.PauseThreshold < 0 {
		return time.Second
	}
	// A collection of an almost empty database is no reason for the next one to
	// come right after it.
	avg = max(avg, 5*time.Millisecond)
	return time.Duration(float64(avg)/c.PauseThreshold) - avg
}

// garbage is what a collector needs of a database.
type garbage interface {
	// RegisterMutationCallback calls fn after each change; deleted says that
	// something was deleted since the last collection.
	RegisterMutationCallback(fn func(deleted bool))
	GarbageCollect(context.Context) (gc.Stats, error)
}

// Collector decides when garbage is collected. It sleeps while there is
// nothing to do.
type Collector struct {
	db    garbage
	sweep func(context.Context) error
	cfg   GCConfig
	log   *slog.Logger

	// wake holds an element when due may have changed.
	wake chan struct{}
	stop context.CancelFunc
	// done is closed when run has returned.
	done chan struct{}

	mu sync.Mutex
	// All below is guarded by mu.

	// changes and deletions are counted since the last collection.
	changes, deletions int
	// waiters wait for a collection that begins after they came.
	waiters []chan<- collected
	// collections and total are for the average pause.
	collections int
	total       time.Duration
	// earliest is when the next collection that nobody asked for may be.
	earliest time.Time
	closed   bool
}

type collected struct {
	stats gc.Stats
	err   error
}

// newCollector starts a collector. sweep runs once, after the first
// collection: it removes what a crash left. The caller closes the collector
// before the database.
func newCollector(db garbage, sweep func(context.Context) error, cfg GCConfig, log *slog.Logger) *Collector {
	cfg.setDefaults()
	ctx, stop := context.WithCancel(context.Background())
	c := &Collector{
		db: db, sweep: sweep, cfg: cfg, log: log,
		wake: make(chan struct{}, 1), stop: stop, done: make(chan struct{}),
	}
	db.RegisterMutationCallback(c.changed)
	go c.run(ctx)
	return c
}

// Close ends the collector; a collection in progress is given up where that is
// possible. Whoever waits gets errdefs.ErrUnavailable.
func (c *Collector) Close() error {
	c.stop()
	<-c.done
	return nil
}

// ScheduleAndWait asks for a collection and waits for its end. A collection
// that was under way at the call does not count: it may have passed over what
// the caller deleted.
func (c *Collector) ScheduleAndWait(ctx context.Context) (gc.Stats, error) {
	w := make(chan collected, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errCollectorClosed()
	}
	c.waiters = append(c.waiters, w)
	c.mu.Unlock()
	c.poke()
	select {
	case r := <-w:
		return r.stats, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for garbage collection: %w", context.Cause(ctx))
	}
}

func errCollectorClosed() error {
	return fmt.Errorf("garbage collector is closed: %w", errdefs.ErrUnavailable)
}

// changed is called by the database, within its lock: it only counts.
func (c *Collector) changed(deleted bool) {
	c.mu.Lock()
	c.changes++
	if deleted {
		c.deletions++
	}
	c.mu.Unlock()
	c.poke()
}

func (c *Collector) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // it is going to look anyway
	}
}

// due says when to collect, if at all.
func (c *Collector) due(now time.Time) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	soon := now.Add(c.cfg.ScheduleDelay)
	switch {
	case len(c.waiters) > 0, c.cfg.DeletionThreshold > 0 && c.deletions >= c.cfg.DeletionThreshold:
		return soon, true
	case c.deletions > 0, c.cfg.MutationThreshold > 0 && c.changes >= c.cfg.MutationThreshold:
		if c.earliest.After(soon) {
			return c.earliest, true
		}
		return soon, true
	}
	return time.Time{}, false
}

func (c *Collector) run(ctx context.Context) {
	defer close(c.done)
	defer c.refuse()

	timer := time.NewTimer(c.cfg.StartupDelay)
	defer timer.Stop()
	// next is when timer fires; zero while it is not set.
	next := time.Now().Add(c.cfg.StartupDelay)
	if c.cfg.StartupDelay < 0 {
		timer.Stop()
		next = time.Time{}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
			next = time.Time{}
			c.collect(ctx)
		}
		// A date that is set stays unless there is an earlier one, or a
		// stream of requests could put it off for ever.
		now := time.Now()
		if at, ok := c.due(now); ok && (next.IsZero() || at.Before(next)) {
			timer.Reset(at.Sub(now))
			next = at
		}
	}
}

// collect does one collection and tells those who waited for it.
func (c *Collector) collect(ctx context.Context) {
	c.mu.Lock()
	waiters := c.waiters
	c.waiters = nil
	c.changes, c.deletions = 0, 0
	first := c.collections == 0
	c.mu.Unlock()

	stats, err := c.db.GarbageCollect(ctx)
	if err == nil && first {
		if err := c.sweep(ctx); err != nil && ctx.Err() == nil {
			// It takes up space and nothing else; a later start tries again.
			c.log.Warn("leftovers of an earlier crash not removed", "error", err)
		}
	}
	if err != nil {
		err = fmt.Errorf("collect garbage: %w", err)
		if ctx.Err() != nil {
			err = errCollectorClosed()
		}
	}

	c.mu.Lock()
	if err == nil {
		c.collections++
		c.total += stats.Elapsed()
		c.earliest = time.Now().Add(c.cfg.spacing(c.total / time.Duration(c.collections)))
	} else {
		// What made it fail, a full disk for example, needs time to go away;
		// what was deleted still has to be collected.
		c.earliest = time.Now().Add(time.Second)
		c.deletions++
	}
	c.mu.Unlock()

	for _, w := range waiters {
		w <- collected{stats, err}
	}
	if err != nil && len(waiters) == 0 && ctx.Err() == nil {
		c.log.Error("garbage collection failed", "error", err)
	}
}

// refuse answers those who came too late for a collection.
func (c *Collector) refuse() {
	c.mu.Lock()
	waiters := c.waiters
	c.waiters = nil
	c.closed = true
	c.mu.Unlock()
	for _, w := range waiters {
		w <- collected{err: errCollectorClosed()}
	}
}
