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
// kill and with other events of memory; on v1 by an eventfd for each cgroup in one
// epoll. Without such events it sleeps.
type OOMWatcher struct {
	file    *os.File // the inotify or the epoll instance
	unified bool

	mu      sync.Mutex
	watches map[*Cgroup]*oomWatch // guarded by mu
	pending map[int32]bool        // watches, by their wd, whose functions Run is to call, guarded by mu
	drained bool                  // Kills has read events in the place of Run, guarded by mu
}

// oomWatch is one cgroup's.
type oomWatch struct {
	wd int32 // inotify's watch descriptor, or the eventfd
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
		fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("watch for kills for memory: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for Go's poller
		return nil, errors.Join(fmt.Errorf("watch for kills for memory: %w", err), unix.Close(fd))
	}
	w.file = os.NewFile(uintptr(fd), "oom-events")
	return w, nil
}

// Add calls fn, from Run, when there may have been a kill in the cgroup, until
// Remove; a second time does nothing. A cgroup without the memory controller is
// NotFound.
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
	if w.watches[c] != nil {
		return nil
	}
	watch := &oomWatch{fn: fn}
	var err error
	if w.unified {
		watch.wd, err = w.inotify(filepath.Join(dir, "memory.events"))
	} else {
		watch.wd, err = w.register(dir)
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
	// What is queued is as old as the counters below: it is taken in the place of
	// Run, which is woken for it.
	some := false
	if err := w.control(func(fd int) { some = w.takeLocked(fd) }); err == nil && some {
		w.drained = true
		_ = w.file.SetReadDeadline(time.Unix(1, 0)) // a file that is closed needs no waking
	}
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

// takeLocked notes the events that are there, and says whether there were any. It
// does not block. The caller holds mu.
func (w *OOMWatcher) takeLocked(fd int) (some bool) {
	if !w.unified {
		return w.takeV1Locked(fd)
	}
	var buf [4096]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if err != nil || n <= 0 {
			return some
		}
		w.noteLocked(buf[:n])
		some = true
	}
}

func (w *OOMWatcher) takeV1Locked(fd int) (some bool) {
	var events [16]unix.EpollEvent
	for {
		n, err := unix.EpollWait(fd, events[:], 0)
		if err != nil || n <= 0 {
			return some
		}
		for _, e := range events[:n] {
			var count [8]byte
			_, _ = unix.Read(int(e.Fd), count[:]) // which sets it to 0
			w.pending[e.Fd] = true
		}
		some = true
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

// register asks the kernel to count up an eventfd when the v1 cgroup is out of
// memory. The registration ends with the eventfd, or with the cgroup, which
// counts it up once more.
func (w *OOMWatcher) register(dir string) (int32, error) {
	f, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	efd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	err = os.WriteFile(filepath.Join(dir, "cgroup.event_control"), fmt.Appendf(nil, "%d %d", efd, f.Fd()), 0)
	if err == nil {
		var aerr error
		err = w.control(func(fd int) {
			aerr = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, efd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(efd)})
		})
		err = errors.Join(err, aerr)
	}
	if err != nil {
		return 0, errors.Join(err, unix.Close(efd))
	}
	return int32(efd), nil
}

// control lends the descriptor without making it blocking, as Fd would.
func (w *OOMWatcher) control(f func(fd int)) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// wait waits for events and notes them.
func (w *OOMWatcher) wait() error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.takeLocked(int(fd))
	})
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
	delete(w.pending, watch.wd)
	if !w.unified {
		_ = unix.Close(int(watch.wd)) // it leaves the epoll, and the cgroup forgets it
		return
	}
	// A watch whose cgroup is gone ended by itself.
	_ = w.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(watch.wd)) })
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
	all := lagV1
	if w.unified {
		all = lagV2
	}
	var lag []time.Duration // what is left
	for {
		err := w.wait()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return // closed; there is no other error
		}
		w.mu.Lock()
		if err == nil || w.drained {
			lag = all
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

// Close ends Run, and all watches.
func (w *OOMWatcher) Close() error {
	err := w.file.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.unified {
		for _, watch := range w.watches {
			_ = unix.Close(int(watch.wd))
		}
	}
	clear(w.watches)
	return err
}
