package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"
)

// OOMWatcher tells when the kernel may have killed a process of a cgroup for
// memory: on v2 by an inotify watch on memory.events, which changes with every
// kill and with other events of memory; on v1 by an eventfd that all cgroups
// share. Without such events it sleeps.
type OOMWatcher struct {
	file    *os.File // the inotify instance or the eventfd
	unified bool

	mu      sync.Mutex
	watches map[*Cgroup]*oomWatch // guarded by mu
	pending map[int32]bool        // watch descriptors whose functions Run is to call, guarded by mu
	drained bool                  // Kills has read events in the place of Run, guarded by mu
}

// oomWatch is one cgroup's.
type oomWatch struct {
	wd int32 // of inotify
	fn func()
	// These are of v2 and guarded by the watcher's mu: the kills when they were read
	// last, of the cgroup and of the one above, which counts them too; and when
	// memory.events was changed last.
	own, above uint64
	changed    time.Time
}

// fresh is how long after a change of memory.events a kill that the cgroup above
// has counted is taken for one of this cgroup, where that is gone.
const fresh = 2 * time.Second

// NewOOMWatcher makes a watcher. The caller calls Run, and Close.
func NewOOMWatcher() (*OOMWatcher, error) {
	w := &OOMWatcher{unified: cgroups.Mode() == cgroups.Unified, watches: map[*Cgroup]*oomWatch{}, pending: map[int32]bool{}}
	var fd int
	var err error
	if w.unified {
		fd, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	} else {
		fd, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("watch for kills for memory: %w", err)
	}
	w.file = os.NewFile(uintptr(fd), "oom-events")
	return w, nil
}

// Add calls fn, from Run, when there may have been a kill in the cgroup, until
// Remove. A cgroup without the memory controller is NotFound.
func (w *OOMWatcher) Add(c *Cgroup, fn func()) error {
	hierarchy := ""
	if !w.unified {
		hierarchy = "memory"
	}
	dir, ok := c.dir(hierarchy)
	if !ok {
		return notFound(os.ErrNotExist)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	watch := &oomWatch{fn: fn}
	var err error
	if w.unified {
		watch.wd, err = w.inotify(filepath.Join(dir, "memory.events"))
	} else {
		err = w.register(dir)
	}
	if err != nil {
		return notFound(fmt.Errorf("watch %s for kills for memory: %w", dir, err))
	}
	w.watches[c] = watch
	if w.unified {
		watch.above = aboveKills(dir)
		watch.own, _ = c.oomKills()
	}
	return nil
}

// Kills is the number of processes that the kernel has killed in the cgroup for
// memory. systemd removes the cgroup of a scope with its counter as soon as it is
// empty: then a cgroup that was at its limit just before has had a kill when the
// one above has counted one since.
func (w *OOMWatcher) Kills(c *Cgroup) uint64 {
	if !w.unified {
		kills, _ := c.oomKills()
		return kills
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	watch := w.watches[c]
	if watch == nil {
		kills, _ := c.oomKills()
		return kills
	}
	w.drainLocked()
	// The cgroup above first: a kill between the two must not be in it alone, or
	// nobody would find it when the cgroup has gone by the next time.
	dir, _ := c.dir("")
	above := aboveKills(dir)
	kills, ok := c.oomKills()
	switch {
	case ok:
		if kills > watch.own { // the kernel counts them here, then above
			above = max(above, watch.above+kills-watch.own)
		}
		watch.own, watch.above = kills, above
	case above > watch.above && time.Since(watch.changed) < fresh:
		watch.own, watch.above = watch.own+1, above
	}
	return watch.own
}

func aboveKills(dir string) uint64 {
	kills, _ := counter(filepath.Join(filepath.Dir(dir), "memory.events"), "oom_kill")
	return kills
}

// drainLocked takes what is in inotify's queue, and wakes Run for it. The caller
// holds mu.
func (w *OOMWatcher) drainLocked() {
	var buf [4096]byte
	for {
		n := 0
		err := w.control(func(fd int) { n, _ = unix.Read(fd, buf[:]) }) // it does not block
		if err != nil || n <= 0 {
			return
		}
		w.noteLocked(buf[:n])
		w.drained = true
		_ = w.file.SetReadDeadline(time.Unix(1, 0)) // a file that is closed needs no waking
	}
}

// noteLocked reads inotify's events; see inotify(7). After a queue that
// overflowed all may have changed. The end of a watch is no change: with its
// cgroup some kernels end it, and Remove does. The caller holds mu.
func (w *OOMWatcher) noteLocked(b []byte) {
	for len(b) >= unix.SizeofInotifyEvent {
		switch mask := binary.NativeEndian.Uint32(b[4:]); {
		case mask&unix.IN_Q_OVERFLOW != 0:
			w.pending[allWatches] = true
		case mask&unix.IN_MODIFY != 0:
			w.pending[int32(binary.NativeEndian.Uint32(b))] = true
		}
		next := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		b = b[min(next, len(b)):]
	}
	for _, watch := range w.watches {
		if w.pending[allWatches] || w.pending[watch.wd] {
			watch.changed = time.Now()
		}
	}
}

func (w *OOMWatcher) inotify(path string) (int32, error) {
	var wd int
	var aerr error
	err := w.control(func(fd int) { wd, aerr = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY) })
	return int32(wd), errors.Join(err, aerr)
}

// register asks the kernel to count up the eventfd when the v1 cgroup is out of
// memory. The registration ends with the cgroup.
func (w *OOMWatcher) register(dir string) error {
	f, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return err
	}
	defer f.Close()
	var werr error
	err = w.control(func(fd int) {
		line := fmt.Sprintf("%d %d", fd, f.Fd())
		werr = os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0)
	})
	return errors.Join(err, werr)
}

// control lends the descriptor without making it blocking, as Fd would.
func (w *OOMWatcher) control(f func(fd int)) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// Remove ends what Add began. A call of fn may be under way.
func (w *OOMWatcher) Remove(c *Cgroup) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch, ok := w.watches[c]
	if !ok {
		return
	}
	delete(w.watches, c)
	if w.unified {
		// A watch whose cgroup is gone ended by itself.
		_ = w.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(watch.wd)) })
	}
}

// After an event the counters are read again at these times. On v1 the event comes
// when the memory is used up, before the kill. On v2 the kernel tells of a change
// at most every 10 ms, the kill comes soon after the cgroup has reached its limit,
// and systemd may have removed the cgroup when the kill is told.
var (
	lagV1 = []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second}
	lagV2 = []time.Duration{
		time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond, 2 * time.Millisecond,
		2 * time.Millisecond, 4 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond,
	}
)

// allWatches stands for all watch descriptors.
const allWatches = -1

// Run calls the functions until Close.
func (w *OOMWatcher) Run() {
	var buf [4096]byte
	var lag []time.Duration // what is left
	for {
		n, err := w.file.Read(buf[:])
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return // closed; there is no other error
		}
		w.mu.Lock()
		switch {
		case err == nil && w.unified:
			w.noteLocked(buf[:n])
			lag = lagV2
		case err == nil:
			w.pending[allWatches] = true
			lag = lagV1
		case w.drained:
			lag = lagV2
		}
		w.drained = false
		fns := w.pendingLocked()
		w.mu.Unlock()
		for _, fn := range fns {
			fn()
		}
		if lag, err = w.rest(lag); err != nil {
			return
		}
	}
}

func (w *OOMWatcher) pendingLocked() (fns []func()) {
	for _, watch := range w.watches {
		if w.pending[allWatches] || w.pending[watch.wd] {
			fns = append(fns, watch.fn)
		}
	}
	return fns
}

// rest sets the time at which Run looks again without an event; after the last
// one nothing is pending.
func (w *OOMWatcher) rest(lag []time.Duration) ([]time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var deadline time.Time
	switch {
	case w.drained:
		deadline = time.Unix(1, 0)
	case len(lag) > 0 && len(w.pending) > 0:
		deadline, lag = time.Now().Add(lag[0]), lag[1:]
	default:
		clear(w.pending)
	}
	return lag, w.file.SetReadDeadline(deadline)
}

// Close ends Run.
func (w *OOMWatcher) Close() error { return w.file.Close() }
