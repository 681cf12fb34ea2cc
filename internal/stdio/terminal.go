package stdio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// ttyBacklog is more than the kernel buffers between the two ends of a pty (its
// limit is 640 KiB): of what is read after the exit of the process, no byte
// behind it was written before.
const ttyBacklog = 1 << 20

// terminal is the pty of a process.
type terminal struct {
	master *heldFile // set by Started or Adopt before the movers run
	sink   *sink
	exited atomic.Bool

	eofOnce sync.Once
	eofErr  error
}

// run copies what the container prints until the process has ended and all
// that was printed before is copied.
func (t *terminal) run(s *Streams) {
	t.copyWhileRuns()
	if t.exited.Load() {
		t.drain()
	}
	s.outputEnded()
	t.sink.finish(&s.watch, s.closing)
}

// copyWhileRuns ends when exit was called or the master was closed.
func (t *terminal) copyWhileRuns() {
	for !t.exited.Load() {
		// EIO says that nobody has the slave open. That may change while the
		// process lives (an init that reopens /dev/console), so only POLLIN
		// ends the wait, not POLLHUP.
		err := t.master.conn.Read(func(fd uintptr) bool { return pollNow(fd, unix.POLLIN)&unix.POLLIN != 0 })
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return
		}
		if _, ok := t.copyChunk(); !ok {
			return
		}
	}
}

// drain copies what is left. A background child may hold the slave and go on
// printing: it is read until the pty is empty, or more was read than
// fits into it.
func (t *terminal) drain() {
	for total := 0; total < ttyBacklog; {
		n, ok := t.copyChunk()
		if n == 0 || !ok {
			return
		}
		total += n
	}
}

// copyChunk copies what can be read without waiting. ok is false when an end
// was closed by us.
func (t *terminal) copyChunk() (n int, ok bool) {
	buf := getBuffer()
	defer putBuffer(buf)
	// The kernel brings in what other threads have written before it says
	// EAGAIN. EAGAIN and EIO are both "nothing now".
	err := withFd(t.master.conn, func(fd uintptr) error {
		n, _ = readNow(fd, buf[:])
		return nil
	})
	if err != nil {
		return 0, false
	}
	return n, n == 0 || t.sink.write(buf[:n])
}

// exit says that the process has ended.
func (t *terminal) exit() {
	t.exited.Store(true)
	if t.master != nil {
		// Wakes the reader for good; drain does not use the poller.
		_ = t.master.file.SetReadDeadline(time.Unix(1, 0))
	}
}

// runInput copies what the client types, and sends the end-of-file character
// at its end.
func (t *terminal) runInput(in *input) {
	defer in.close()
	var last byte
	eof := in.copyTo(func(p []byte) error {
		last = p[len(p)-1]
		_, err := t.master.file.Write(p)
		if errors.Is(err, unix.EIO) {
			// Nobody has the slave open now: a line that is cut has no reader.
			return nil
		}
		return err
	})
	if !eof {
		return
	}
	if err := t.sendEOF(last); err != nil {
		in.report(err)
	}
}

// sendEOF writes the end-of-file character, once in the life of the terminal.
// last is the byte that was written before: where it left a line unfinished,
// the first character only hands the line over, and a second one ends the
// input.
func (t *terminal) sendEOF(last byte) error {
	t.eofOnce.Do(func() { t.eofErr = t.writeEOF(last) })
	return t.eofErr
}

func (t *terminal) writeEOF(last byte) error {
	var tio *unix.Termios
	err := withFd(t.master.conn, func(fd uintptr) (err error) {
		tio, err = unix.IoctlGetTermios(int(fd), unix.TCGETS)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the terminal's settings: %w", err)
	}
	char := tio.Cc[unix.VEOF]
	if char == 0 {
		return nil // the container switched it off
	}
	p := []byte{char}
	lineEnds := last == 0 || last == '\n' || last == char || (last == '\r' && tio.Iflag&unix.ICRNL != 0)
	if tio.Lflag&unix.ICANON != 0 && !lineEnds {
		p = append(p, char)
	}
	_, err = t.master.file.Write(p)
	return err
}

func (t *terminal) resize(size task.ConsoleSize) error {
	err := withFd(t.master.conn, func(fd uintptr) error {
		return unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	if errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("resize the terminal: it is closed: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}
