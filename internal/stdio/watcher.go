package stdio

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher tells when somebody opens a FIFO. One serves any number of streams.
type Watcher struct {
	file *os.File // an inotify instance
	conn syscall.RawConn
	done chan struct{} // closed when the reading goroutine has ended

	mu sync.Mutex
	// watches are the waiters by inotify's watch descriptor, of which there is
	// one for each inode. Guarded by mu.
	watches map[int32]map[chan struct{}]struct{}
}

// NewWatcher starts a watcher. The caller closes it, after the streams that
// use it.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("start to watch FIFOs: %w", err)
	}
	w := &Watcher{
		file:    os.NewFile(uintptr(fd), "inotify"),
		done:    make(chan struct{}),
		watches: map[int32]map[chan struct{}]struct{}{},
	}
	// SyscallConn fails for a nil file only.
	w.conn, _ = w.file.SyscallConn()
	go w.run()
	return w, nil
}

// Close ends the watcher and its goroutine.
func (w *Watcher) Close() error {
	err := w.file.Close()
	<-w.done
	return err
}

// add has c receive a value, if it has room for one, when the file behind fd is opened.
// remove undoes it.
func (w *Watcher) add(fd uintptr, c chan struct{}) (remove func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var wd int
	err = withFd(w.conn, func(in uintptr) (err error) {
		wd, err = unix.InotifyAddWatch(int(in), procPath(fd), unix.IN_OPEN)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch a FIFO: %w", err)
	}
	id := int32(wd)
	if w.watches[id] == nil {
		w.watches[id] = map[chan struct{}]struct{}{}
	}
	w.watches[id][c] = struct{}{}
	return func() { w.remove(id, c) }, nil
}

func (w *Watcher) remove(id int32, c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watches[id], c)
	if len(w.watches[id]) > 0 {
		return
	}
	delete(w.watches, id)
	// It fails when the file is gone, and the watch with it.
	_ = withFd(w.conn, func(in uintptr) error {
		_, err := unix.InotifyRmWatch(int(in), uint32(id))
		return err
	})
}

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			id := int32(binary.NativeEndian.Uint32(rest))
			w.wake(id)
			name := binary.NativeEndian.Uint32(rest[12:])
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(name)):]
		}
	}
}

// wake tells the waiters of one watch, or all of them when the kernel lost
// events (id -1).
func (w *Watcher) wake(id int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wd, waiters := range w.watches {
		if id != wd && id >= 0 {
			continue
		}
		for c := range waiters {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

// watcherRef is the watcher that streams were given, or their own, made when
// it is first needed.
type watcherRef struct {
	shared *Watcher
	log    *slog.Logger

	mu  sync.Mutex
	own *Watcher // guarded by mu
}

func (r *watcherRef) get() (*Watcher, error) {
	if r.shared != nil {
		return r.shared, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own == nil {
		w, err := NewWatcher()
		if err != nil {
			return nil, err
		}
		r.own = w
	}
	return r.own, nil
}

func (r *watcherRef) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own != nil {
		_ = r.own.Close()
		r.own = nil
	}
}

// pollInterval is how often a FIFO is looked at when it cannot be watched.
const pollInterval = 100 * time.Millisecond

// waitForReader returns when the FIFO behind our writer has a reader, when the writer
// or stop is closed.
func (r *watcherRef) waitForReader(w *heldFile, stop <-chan struct{}) {
	if found, err := hasReader(w); found || err != nil {
		return
	}
	opened := make(chan struct{}, 1)
	var tick <-chan time.Time
	if remove, err := r.watch(w, opened); err == nil {
		defer remove()
	} else {
		r.log.Warn("cannot watch for a late reader, polling instead", "path", w.file.Name(), "error", err)
		t := time.NewTicker(pollInterval)
		defer t.Stop()
		tick = t.C
	}
	for {
		// Asked after the watch is set: who came in between is not missed.
		if found, err := hasReader(w); found || err != nil {
			return
		}
		select {
		case <-opened:
		case <-tick:
		case <-stop:
			return
		}
	}
}

func (r *watcherRef) watch(w *heldFile, c chan struct{}) (remove func(), err error) {
	watcher, err := r.get()
	if err != nil {
		return nil, err
	}
	err = withFd(w.conn, func(fd uintptr) error {
		remove, err = watcher.add(fd, c)
		return err
	})
	return remove, err
}

// hasReader asks whether anybody has a FIFO, of which we hold a writer and no
// reader, open for reading.
func hasReader(w *heldFile) (found bool, err error) {
	err = withFd(w.conn, func(fd uintptr) error {
		found = pollNow(fd, 0)&unix.POLLERR == 0
		return nil
	})
	return found, err
}
