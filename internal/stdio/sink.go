package stdio

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

type sinkKind uint8

const (
	toNull sinkKind = iota
	toFIFO
	toFile
	toLog
	toLogger // a pipe from a terminal to a logger
)

// sink is where an output goes.
type sink struct {
	kind sinkKind
	path string
	node node
	log  *slog.Logger

	// w is our writer; nil for the null device and a log.
	w *heldFile
	// end is the end of a regular file, locked by who writes there. It is
	// released when no mover can be writing; nil for others.
	end *fileEnd
	// rec is a log, to which this is the stream of that name; nil for others.
	rec    *recorder
	stream string
	cut    []byte // of a character whose end did not come yet; the mover's
	// reader is our own read end of a FIFO. While it is open a client may leave
	// and come back: no write fails, and what is in the FIFO stays there.
	reader *os.File

	// copies is set when the file system cannot take a splice. The file is then
	// in append mode and written from user space. Terminals start with it.
	copies atomic.Bool

	mu       sync.Mutex
	lost     int64     // guarded by mu; bytes that could not be written
	reported int64     // guarded by mu; how many of them the log has
	logged   time.Time // guarded by mu; when the log got them
}

// sink opens the target for writing.
func (o *openedTarget) sink(name string, h holder, files *Files, appendMode bool) (*sink, error) {
	k := &sink{kind: o.kind, path: o.path, log: h.log}
	k.copies.Store(appendMode)
	var w *os.File
	var err error
	switch o.kind {
	case toNull:
		return k, nil
	case toFIFO:
		w, k.reader, err = openFIFOWriter(uintptr(o.fd), o.path)
	case toFile:
		w, err = openFileWriter(uintptr(o.fd), o.path, appendMode)
	case toLog:
		k.stream = name
		if k.rec, err = files.recorder(o.log); err != nil {
			return nil, o.fail(err)
		}
		return k, nil
	}
	if err != nil {
		return nil, o.fail(err)
	}
	k.w = h.hold(name+keptSinkSuffix, w)
	if err := k.identify(files); err != nil {
		k.close()
		return nil, o.fail(err)
	}
	return k, nil
}

// identify finds out which file the writer is for. It asks the writer: on
// overlayfs the first one to open a file for writing puts another in its place.
func (k *sink) identify(files *Files) error {
	var st unix.Stat_t
	err := withFd(k.w.conn, func(fd uintptr) error { return unix.Fstat(int(fd), &st) })
	if err != nil {
		return err
	}
	k.node = node{st.Dev, st.Ino}
	if k.kind == toFile {
		k.end = files.end(k.node)
	}
	return nil
}

// openFIFOWriter opens a FIFO for writing without waiting for a reader, and a
// reader of our own. A client that waits in open(2) counts as a reader.
func openFIFOWriter(fd uintptr, path string) (w, r *os.File, err error) {
	r, err = reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK, path)
	if err != nil {
		return nil, nil, err
	}
	w, err = reopen(fd, unix.O_WRONLY|unix.O_NONBLOCK, path)
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return w, r, nil
}

func openFileWriter(fd uintptr, path string, appendMode bool) (*os.File, error) {
	flags := unix.O_WRONLY
	if appendMode {
		flags |= unix.O_APPEND
	}
	return reopen(fd, flags, path)
}

// take moves what src has, at least one byte, waiting for it and for room. 0
// without an error is the end of src. The only error is errStopped, or one of
// src: a destination that fails loses bytes, but src is always emptied, so that
// the container never blocks on a full disk.
func (k *sink) take(src *heldFile) (int64, error) {
	if k.kind == toLog {
		return k.record(src)
	}
	if k.kind == toNull || k.copies.Load() {
		return k.copyFrom(src)
	}
	p := splicer{src: src.conn, dst: k.w.conn, end: k.end}
	n, err := p.move()
	switch {
	case err == nil, err == errStopped:
		return n, err
	case err == unix.EINVAL && k.kind == toFile:
		return k.fallBack(src)
	default:
		return k.discard(src, err)
	}
}

// fallBack goes on in user space where the file system has no splice.
func (k *sink) fallBack(src *heldFile) (int64, error) {
	err := withFd(k.w.conn, func(fd uintptr) error {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(fd, unix.F_SETFL, flags|unix.O_APPEND)
		}
		return err
	})
	if err != nil {
		return k.discard(src, err)
	}
	k.copies.Store(true)
	return k.copyFrom(src)
}

// copyFrom is take through a buffer.
func (k *sink) copyFrom(src *heldFile) (int64, error) {
	buf, n, err := readChunk(src.conn)
	if n > 0 {
		k.write(buf[:n])
	}
	putBuffer(buf)
	return int64(n), err
}

// discard throws away one chunk of src because of cause.
func (k *sink) discard(src *heldFile, cause error) (int64, error) {
	buf, n, err := readChunk(src.conn)
	putBuffer(buf)
	k.failed(cause, n)
	return int64(n), err
}

// write puts all of p into the sink, waiting for room in a FIFO. What cannot be
// written is discarded and counted. It reports false when the sink was closed.
func (k *sink) write(p []byte) bool {
	if k.kind == toNull {
		return true
	}
	if k.kind == toLog {
		k.writeLog(p)
		return true
	}
	n, err := k.writeAll(p)
	switch {
	case err == nil:
		return true
	case errors.Is(err, os.ErrClosed):
		return false
	default:
		k.failed(err, len(p)-n)
		return true
	}
}

func (k *sink) writeAll(p []byte) (int, error) {
	if k.end != nil {
		k.end.Lock()
		defer k.end.Unlock()
	}
	return k.w.file.Write(p)
}

// logInterval is how often a sink may log its losses: what a container prints
// to a full disk must not fill the log.
const logInterval = time.Minute

// failed counts n lost bytes.
func (k *sink) failed(err error, n int) {
	if n == 0 {
		return
	}
	k.mu.Lock()
	k.lost += int64(n)
	lost, report := k.lost, time.Since(k.logged) >= logInterval
	if report {
		k.reported, k.logged = k.lost, time.Now()
	}
	k.mu.Unlock()
	if report {
		k.log.Warn("output is being discarded", "path", k.path, "bytes", lost, "error", err)
	}
}

// reportLosses logs what failed has not.
func (k *sink) reportLosses() {
	k.mu.Lock()
	lost, report := k.lost, k.lost > k.reported
	k.reported = k.lost
	k.mu.Unlock()
	if report {
		k.log.Warn("output was discarded", "path", k.path, "bytes", lost)
	}
}

// finish closes the writer, so that the client sees EOF; but as long as a FIFO
// has no reader, it waits for one, because the bytes in it would go with the
// last open end. It returns at the latest when stop is closed.
func (k *sink) finish(watch *watcherRef, stop <-chan struct{}) {
	if k.kind == toNull {
		return
	}
	if k.kind == toLog {
		k.endLog()
	}
	k.reportLosses()
	if k.kind == toFIFO {
		if k.reader != nil {
			_ = k.reader.Close()
		}
		watch.waitForReader(k.w, stop)
	}
	k.w.close()
}

// release gives back what the sink shares with others; by then nobody writes.
func (k *sink) release() {
	k.end.release()
	if err := k.rec.release(); err != nil {
		k.log.Warn("close a log", "path", k.path, "error", err)
	}
}

// close ends the sink at once. Movers that use it stop, but those to a log,
// which stop with their source.
func (k *sink) close() {
	k.w.close()
	if k.reader != nil {
		_ = k.reader.Close()
	}
}

// pending returns how many bytes wait in a pipe or FIFO.
func pending(h *heldFile) int {
	n := 0
	_ = withFd(h.conn, func(fd uintptr) (err error) {
		n, err = queued(fd)
		return err
	})
	return n
}

func cutOff(stream string, bytes int) error {
	return fmt.Errorf("%s was closed with %d bytes not taken by the client", stream, bytes)
}
