package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// maxStreamName bounds the name of a stream, in bytes; clients use about 40.
const maxStreamName = 256

// Streams holds the open streams of clients by namespace and name, for calls
// that refer to them (progress and archives of Transfer). A stream that was
// opened under a lease is closed when the lease goes.
type Streams struct {
	mu sync.Mutex
	// open is guarded by mu.
	open map[streamKey]*heldStream
}

type streamKey struct{ namespace, name string }

// heldStream is a stream that leaves the table when it is closed.
type heldStream struct {
	streaming.Stream
	key   streamKey
	lease string
	table *Streams
}

var (
	_ streaming.StreamManager = (*Streams)(nil)
	_ metadata.Collector      = (*Streams)(nil)
)

func newStreams() *Streams { return &Streams{open: map[streamKey]*heldStream{}} }

// Register makes a stream known under a name in the context's namespace and
// lease. A name in use is errdefs.ErrAlreadyExists.
func (s *Streams) Register(ctx context.Context, name string, stream streaming.Stream) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	if name == "" || len(name) > maxStreamName {
		return fmt.Errorf("stream name of %d bytes, want 1 to %d: %w", len(name), maxStreamName, errdefs.ErrInvalidArgument)
	}
	lease, _ := leases.FromContext(ctx)
	h := &heldStream{Stream: stream, key: streamKey{ns, name}, lease: lease, table: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.open[h.key]; ok {
		return fmt.Errorf("stream %q: %w", name, errdefs.ErrAlreadyExists)
	}
	s.open[h.key] = h
	return nil
}

// Get finds a stream of the context's namespace. Who gets a stream closes it.
func (s *Streams) Get(ctx context.Context, name string) (streaming.Stream, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.open[streamKey{ns, name}]; ok {
		return h, nil
	}
	return nil, fmt.Errorf("stream %q: %w", name, errdefs.ErrNotFound)
}

// Unregister takes the stream out of the table without closing it. Another
// stream that has the name by now stays.
func (s *Streams) Unregister(ctx context.Context, name string, stream streaming.Stream) {
	ns, _ := namespaces.Namespace(ctx)
	key := streamKey{ns, name}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.open[key]; ok && h.Stream == stream {
		delete(s.open, key)
	}
}

func (h *heldStream) Close() error {
	h.table.drop(h)
	return h.Stream.Close()
}

// drop reports whether the stream was still there.
func (s *Streams) drop(h *heldStream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[h.key] != h {
		return false
	}
	delete(s.open, h.key)
	return true
}

// ReferenceLabel is the word for streams in labels that refer to them.
func (s *Streams) ReferenceLabel() string { return "stream" }

// StartCollection looks at the streams that are open now: one that is opened
// later is not part of this collection and stays.
func (s *Streams) StartCollection(context.Context) (metadata.CollectionContext, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &streamCollection{seen: make(map[streamKey]*heldStream, len(s.open))}
	for k, h := range s.open {
		c.seen[k] = h
	}
	return c, nil
}

// streamCollection is one collection; it belongs to the collecting goroutine.
type streamCollection struct {
	seen map[streamKey]*heldStream
	dead []*heldStream
}

func (k streamKey) node() gc.Node {
	return gc.Node{Type: metadata.ResourceStream, Namespace: k.namespace, Key: k.name}
}

func (c *streamCollection) All(fn func(gc.Node)) {
	for k := range c.seen {
		fn(k.node())
	}
}

// Active are the streams without a lease: they live until they are closed.
func (c *streamCollection) Active(ns string, fn func(gc.Node)) {
	c.each(ns, "", fn)
}

func (c *streamCollection) Leased(ns, lease string, fn func(gc.Node)) {
	if lease != "" {
		c.each(ns, lease, fn)
	}
}

func (c *streamCollection) each(ns, lease string, fn func(gc.Node)) {
	for k, h := range c.seen {
		if k.namespace == ns && h.lease == lease {
			fn(k.node())
		}
	}
}

func (c *streamCollection) Remove(n gc.Node) {
	if h, ok := c.seen[streamKey{n.Namespace, n.Key}]; ok {
		c.dead = append(c.dead, h)
	}
}

func (c *streamCollection) Cancel() error { return nil }

func (c *streamCollection) Finish() error {
	var errs []error
	for _, h := range c.dead {
		if h.table.drop(h) {
			errs = append(errs, h.Stream.Close())
		}
	}
	return errors.Join(errs...)
}
