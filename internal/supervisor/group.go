package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/bundle"
)

const (
	// groupSubdir is the directory under state that holds the groups.
	groupSubdir = "io.containerd.berth.group"
	// groupCalls bounds the calls in flight to one process of Berth's shim.
	groupCalls = 1024
)

// groupID names a group: the namespace, and the directory's name, which is
// made of the group's key.
type groupID struct {
	namespace, name string
}

func newGroupID(namespace, key string) groupID {
	sum := sha256.Sum256([]byte(key))
	return groupID{namespace, hex.EncodeToString(sum[:16])}
}

// group is the tasks that one process of Berth's shim serves. It exists while
// it has tasks or its shim runs; it starts its shim when there is none and it
// has tasks.
//
// Its directory holds, beside what the supervisor writes (key, log,
// bootstrap.json), guard.pid and shim.pid, which the guard and the shim write.
type group struct {
	s      *Supervisor
	id     groupID
	key    string
	dir    string
	log    *slog.Logger
	keeper *keeper
	// done is closed when the group is gone, its directory included.
	done chan struct{}

	// Used by the keeper's goroutine alone: the FIFO's reading end, and since
	// when a living shim has not been reachable.
	logs      *os.File
	deafSince time.Time

	mu    sync.Mutex
	refs  int  // tasks and creates that need the shim. Guarded by mu
	ended bool // no reference can be taken any more. Guarded by mu
}

// acquire returns the group with a reference taken, which the caller gives
// back with release.
func (s *Supervisor) acquire(ctx context.Context, id groupID, key string) (*group, error) {
	for {
		g, ok, err := s.findGroup(id, key, true)
		if ok || err != nil {
			return g, err
		}
		// It is on its way out; the next of its name comes after it.
		select {
		case <-g.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// refer takes a reference, unless the group has ended.
func (g *group) refer() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return false
	}
	g.refs++
	return true
}

func (g *group) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refs--
}

// findGroup makes the group where there is none. With refer it takes a
// reference, before the keeper of a new group can find that nobody needs it; ok
// is false when the group has ended.
func (s *Supervisor) findGroup(id groupID, key string, refer bool) (g *group, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, false, errClosed
	}
	if g := s.groups[id]; g != nil {
		return g, !refer || g.refer(), nil
	}
	g = &group{
		s: s, id: id, key: key,
		dir:  filepath.Join(s.groupRoot, id.namespace, id.name),
		done: make(chan struct{}),
	}
	if refer {
		g.refs = 1
	}
	g.log = s.cfg.Log.With("namespace", id.namespace, "group", key)
	g.keeper = newKeeper(g.name(), g, 3, groupCalls)
	s.groups[id] = g
	s.loops.Go(func() { g.keeper.run(s.ctx, nil) })
	return g, true, nil
}

func (g *group) name() string { return fmt.Sprintf("Berth's shim of %s/%s", g.id.namespace, g.key) }

// dial connects to the group's socket. The guard holds it open as well:
// while a shim is replaced, a connection is made and its calls are answered by
// the next shim.
func (g *group) dial(ctx context.Context) (*conn, error) {
	if err := g.open(); err != nil {
		return nil, err
	}
	result, err := g.readBootstrap()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, g.s.cfg.Timeouts.Connect)
	defer cancel()
	return connect(ctx, result, g.s.cfg.Timeouts.Connect)
}

// open makes the directory and begins to read the log, once.
func (g *group) open() error {
	if g.logs != nil {
		return nil
	}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of %s: %w", g.name(), err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "key"), []byte(g.key), 0o600); err != nil {
		return fmt.Errorf("make the directory of %s: %w", g.name(), err)
	}
	dir, err := os.Open(g.dir)
	if err != nil {
		return fmt.Errorf("open the directory of %s: %w", g.name(), err)
	}
	defer dir.Close()
	logs, err := bundle.OpenFIFO(dir, bundle.LogFIFO)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", g.name(), err)
	}
	g.logs = logs
	g.s.loops.Go(func() { copyLog(g.log, logs) })
	return nil
}

// errNoAddress: no shim of the group ever said where it listens.
var errNoAddress = errors.New("no shim was started yet")

func (g *group) readBootstrap() (*bootapi.BootstrapResult, error) {
	data, err := readBounded(filepath.Join(g.dir, bundle.BootstrapFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoAddress
	}
	if err != nil {
		return nil, err
	}
	result, err := parseBootstrapText(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAddress, err)
	}
	return result, nil
}

// dead wants proof of two kinds: no one listens, and neither the guard nor
// the shim exists. A pair that lives and cannot be reached, because the socket
// was removed or its address got lost, is ended: the next pair adopts its
// containers, and nobody could ever use them otherwise.
func (g *group) dead(err error) bool {
	noAddress := errors.Is(err, errNoAddress)
	if !noAddress && !nobodyListens(err) {
		g.deafSince = time.Time{}
		return false
	}
	pair := g.pair()
	if len(pair) == 0 {
		g.deafSince = time.Time{}
		return true
	}
	if g.deafSince.IsZero() {
		g.deafSince = time.Now()
	}
	if !noAddress && time.Since(g.deafSince) < g.s.cfg.Timeouts.Load {
		return false
	}
	for _, id := range pair {
		g.log.Warn("shim lives and cannot be reached; it is replaced", "pid", id.pid, "error", err)
		if err := id.kill(); err != nil {
			g.log.Warn("shim cannot be replaced", "error", err)
		}
	}
	return false
}

// pair returns those of guard and shim that live, the guard first: without it
// nobody starts the shim again.
func (g *group) pair() []identity {
	var alive []identity
	for _, name := range []string{"guard.pid", "shim.pid"} {
		data, err := readBounded(filepath.Join(g.dir, name))
		if err != nil {
			continue
		}
		if id, ok := parseIdentity(data); ok && id.alive() {
			alive = append(alive, id)
		}
	}
	return alive
}

// revive starts guard and shim anew for the group's tasks; the new shim takes
// them up from disk. Without tasks the group ends.
func (g *group) revive(ctx context.Context) (bool, error) {
	if g.unused() {
		return false, nil
	}
	if g.s.cfg.ShimBinary == "" {
		return true, fmt.Errorf("%s is not installed: %w", ownShim, errdefs.ErrNotFound)
	}
	result, err := g.startGuard(ctx)
	if err != nil {
		return true, err
	}
	data, err := json.Marshal(result)
	if err != nil {
		return true, fmt.Errorf("encode the address of %s: %w", g.name(), err)
	}
	return true, replaceFile(filepath.Join(g.dir, bundle.BootstrapFile), data)
}

// unused ends the group if nobody needs it.
func (g *group) unused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = g.refs == 0
	return g.ended
}

// end takes the group away, unless its shim goes on without the supervisor.
func (g *group) end(dead bool) {
	if g.logs != nil {
		g.logs.Close()
	}
	if !dead {
		return
	}
	if err := os.RemoveAll(g.dir); err != nil {
		g.log.Warn("directory of a group that ended is left", "error", err)
	}
	g.s.mu.Lock()
	delete(g.s.groups, g.id)
	g.s.mu.Unlock()
	close(g.done)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBootstrap+1))
	if err == nil && len(data) > maxBootstrap {
		err = fmt.Errorf("%s is longer than %d bytes: %w", path, maxBootstrap, errdefs.ErrFailedPrecondition)
	}
	return data, err
}

func replaceFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
