package ociruntime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/speccheck"
)

// maxCached bounds the binaries that a FeatureCache knows: their paths come
// from clients.
const maxCached = 64

// FeatureCache remembers what runtime binaries support, so that a create does
// not fork for it. A binary that was replaced or changed is asked again. One
// that has no features command is asked for its version instead. A call that
// was cut short is not remembered. The zero value is ready; it must not be
// copied.
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
	features speccheck.Features
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

// Features says what the binary of a runtime supports. A binary that cannot say
// is no error. Callers that come while a binary is being asked wait for that one
// answer, or for their context.
func (c *FeatureCache) Features(ctx context.Context, r *Runtime) (speccheck.Features, error) {
	path, err := r.lookup("features")
	if err != nil {
		return speccheck.Features{}, err
	}
	for {
		id, err := identify(path)
		if err != nil {
			return speccheck.Features{}, r.notRunnable("features", err)
		}
		entry, mine := c.entry(path, id)
		if mine {
			c.ask(ctx, r, path, entry)
			return entry.features, entry.err
		}
		select {
		case <-entry.done:
		case <-ctx.Done():
			return speccheck.Features{}, r.failure("features", "", ctx.Err(), nil)
		}
		if entry.keep {
			return entry.features, entry.err
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
	e.features, e.err = own.describe(ctx)
	// An answer that the binary gave holds as long as the binary; so does that it
	// gave none.
	id, err := identify(path)
	e.keep = e.err == nil && err == nil && id == e.identity
	if !e.keep {
		c.mu.Lock()
		if c.known[path] == e {
			delete(c.known, path)
		}
		c.mu.Unlock()
	}
	close(e.done)
}

// describe asks for features, and where there are none for the version.
func (r *Runtime) describe(ctx context.Context) (speccheck.Features, error) {
	rt := speccheck.Runtime{Binary: r.Binary}
	_, raw, err := r.Features(ctx)
	if err == nil {
		return speccheck.ParseFeatures(raw, rt)
	}
	if !spoke(err) {
		return speccheck.Features{}, err
	}
	text, err := r.Version(ctx)
	if err == nil {
		rt = speccheck.ParseVersion(text)
		rt.Binary = r.Binary
	} else if !spoke(err) {
		return speccheck.Features{}, err
	}
	return speccheck.ParseFeatures(nil, rt)
}

// spoke says that a call came to its end by itself: what it said is the
// binary's answer.
func spoke(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Exited() || errdefs.IsInternal(err)
}
