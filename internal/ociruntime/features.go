package ociruntime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// maxCached bounds the binaries that a FeatureCache knows: their paths come
// from clients.
const maxCached = 64

// FeatureCache remembers what runtime binaries support, so that a create does
// not fork for it. A binary that was replaced or changed is asked again. That a
// binary has no features command is remembered too; a call that was cut short
// is not. The zero value is ready; it must not be copied.
type FeatureCache struct {
	mu sync.Mutex
	// known is guarded by mu.
	known map[string]*cached
}

// cached is the answer of one binary. All but identity and done are written
// before done is closed and not changed after.
type cached struct {
	identity identity
	done     chan struct{}
	features *features.Features
	raw      []byte
	err      error
	// keep is false when the answer holds for its own caller only.
	keep bool
}

// identity changes whenever a file's content or mode does.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func identify(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, errors.ErrUnsupported
	}
	return identity{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// Features returns what [Runtime.Features] does. Callers that come while a
// binary is being asked wait for that one answer, or for their context. What is
// returned is shared and must not be changed.
func (c *FeatureCache) Features(ctx context.Context, r *Runtime) (*features.Features, []byte, error) {
	path, err := r.lookup("features")
	if err != nil {
		return nil, nil, err
	}
	for {
		id, err := identify(path)
		if err != nil {
			return nil, nil, r.notRunnable("features", err)
		}
		entry, mine := c.entry(path, id)
		if mine {
			c.ask(ctx, r, path, entry)
			return entry.features, entry.raw, entry.err
		}
		select {
		case <-entry.done:
		case <-ctx.Done():
			return nil, nil, r.failure("features", "", ctx.Err(), nil)
		}
		if entry.keep {
			return entry.features, entry.raw, entry.err
		}
		// Whoever asked was interrupted: that says nothing of the binary.
	}
}

// entry finds the answer of a binary, or makes a place for it: then the caller
// must ask.
func (c *FeatureCache) entry(path string, id identity) (e *cached, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.known[path]; e != nil && e.identity == id {
		return e, false
	}
	if c.known == nil {
		c.known = make(map[string]*cached)
	}
	for old := range c.known {
		if len(c.known) < maxCached {
			break
		}
		delete(c.known, old)
	}
	e = &cached{identity: id, done: make(chan struct{})}
	c.known[path] = e
	return e, true
}

// ask fills an entry, and drops it again if the answer is not one to keep.
func (c *FeatureCache) ask(ctx context.Context, r *Runtime, path string, e *cached) {
	// Features depend on the binary alone.
	own := Runtime{Binary: path, Timeout: r.Timeout}
	e.features, e.raw, e.err = own.Features(ctx)
	var exit *exec.ExitError
	ended := e.err == nil || errors.As(e.err, &exit) && exit.Exited()
	id, err := identify(path)
	e.keep = ended && err == nil && id == e.identity
	if !e.keep {
		c.mu.Lock()
		if c.known[path] == e {
			delete(c.known, path)
		}
		c.mu.Unlock()
	}
	close(e.done)
}
