package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// batchSize is how much is written with one call.
const batchSize = 64 << 10

// Writer appends to a log. It is not safe for concurrent use, and there must be
// one for a path. Close it.
type Writer struct {
	cfg  Config
	file *os.File // nil when it could not be made anew; tried again by each write
	size int64
	buf  []byte
	// lost is how many bytes of text could not be stored since the log last said so.
	lost      int64
	lostSince time.Time
	lostCause error
}

// Open opens the log for appending; it is made, 0640, with its parents, 0755,
// where it does not exist. A record that a killed writer left half
// written is taken away.
func Open(cfg Config) (*Writer, error) {
	w := &Writer{cfg: cfg}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o755); err != nil {
		return nil, err
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	if err := w.repair(); err != nil {
		return nil, errors.Join(fmt.Errorf("log %s: take away a record that was cut: %w", cfg.Path, err), w.file.Close())
	}
	return w, nil
}

func (w *Writer) open() error {
	// O_NONBLOCK: a FIFO in this place must not hold us up.
	f, err := os.OpenFile(w.cfg.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: w.cfg.Path, Err: unix.EISDIR}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file, w.size = f, info.Size()
	return nil
}

// repair cuts the file after its last whole line.
func (w *Writer) repair() error {
	// A record is never longer than this: each byte takes at most six.
	tail := make([]byte, min(w.size, 7*MaxText))
	if _, err := w.file.ReadAt(tail, w.size-int64(len(tail))); err != nil && err != io.EOF {
		return err
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	if end == len(tail) || end == 0 && int64(len(tail)) < w.size {
		return nil // whole, or not a log of ours: nothing of it is taken away
	}
	return w.truncate(w.size - int64(len(tail)-end))
}

func (w *Writer) truncate(size int64) error {
	err := w.file.Truncate(size)
	if err == nil {
		w.size = size
	}
	return err
}

// Write stores text of a stream, which may be several lines or a part of one.
// lost is how many of its bytes could not be stored; the log says so as soon as it
// can be written again. An error without a loss is a rotation that failed.
func (w *Writer) Write(stream string, at time.Time, text []byte) (lost int, err error) {
	stamp := at.UTC().Format(time.RFC3339Nano)
	for len(text) > 0 {
		w.buf = w.buf[:0]
		w.tell(stamp)
		taken := 0
		for taken < len(text) && len(w.buf) < batchSize {
			line := firstLine(text[taken:])
			taken += len(line)
			w.buf = appendRecord(w.buf, line, stream, stamp)
		}
		text = text[taken:]
		full, werr := w.flush()
		if full {
			w.lost = 0
		} else {
			if w.lost == 0 {
				w.lostSince = at
			}
			w.lost += int64(taken)
			w.lostCause = werr
			lost += taken
		}
		err = errors.Join(err, werr)
	}
	return lost, err
}

// tell begins a batch with what was lost before it.
func (w *Writer) tell(stamp string) {
	if w.lost == 0 {
		return
	}
	cause := w.lostCause
	var perr *fs.PathError
	if errors.As(cause, &perr) {
		cause = perr.Err
	}
	w.buf = appendRecord(w.buf, fmt.Appendf(nil, "%d bytes of output from %s on are lost: %v\n",
		w.lost, w.lostSince.UTC().Format(time.RFC3339Nano), cause), Lost, stamp)
}

// appendRecord appends a [Record] as a line. encoding/json would take most of
// the time that a log costs.
func appendRecord(b, text []byte, stream, stamp string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, `{"log":"`...)
	for len(text) > 0 {
		n := bytes.IndexFunc(text, needsEscape)
		if n < 0 {
			b = append(b, text...)
			break
		}
		b = append(b, text[:n]...)
		c, size := utf8.DecodeRune(text[n:])
		text = text[n+size:]
		switch c {
		case '"', '\\':
			b = append(b, '\\', byte(c))
		case '\n':
			b = append(b, `\n`...)
		case utf8.RuneError:
			b = append(b, "\uFFFD"...)
		default:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		}
	}
	b = append(b, `","stream":"`...)
	b = append(b, stream...)
	b = append(b, `","time":"`...)
	b = append(b, stamp...)
	return append(b, "\"}\n"...)
}

func needsEscape(c rune) bool { return c < ' ' || c == '"' || c == '\\' || c == utf8.RuneError }

// flush writes the batch, all of it or nothing.
func (w *Writer) flush() (full bool, err error) {
	if w.file == nil {
		if err := w.open(); err != nil {
			return false, err
		}
	}
	if w.cfg.MaxSize > 0 && w.size > 0 && w.size+int64(len(w.buf)) > w.cfg.MaxSize {
		err = w.rotate()
		if w.file == nil {
			return false, err
		}
	}
	n, werr := w.file.Write(w.buf)
	if werr == nil {
		w.size += int64(n)
		return true, err
	}
	if n > 0 {
		werr = errors.Join(werr, w.file.Truncate(w.size))
	}
	return false, errors.Join(err, werr)
}

// rotate puts a new file in the place of a full one. A writer that is killed
// meanwhile leaves a gap in the numbers, or no file at the path: readers know
// both.
func (w *Writer) rotate() error {
	for n := w.cfg.MaxFiles - 1; n > 0; n-- {
		err := os.Rename(rotated(w.cfg.Path, n-1), rotated(w.cfg.Path, n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate the log: %w", err)
		}
	}
	if w.cfg.MaxFiles <= 1 {
		if err := os.Remove(w.cfg.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate the log: %w", err)
		}
	}
	err := w.file.Close()
	w.file = nil
	return errors.Join(err, w.open())
}

// Close closes the log. Losses that it could not tell before are told now, or
// never.
func (w *Writer) Close() error {
	var err error
	if w.lost > 0 {
		w.buf = w.buf[:0]
		w.tell(time.Now().UTC().Format(time.RFC3339Nano))
		_, err = w.flush()
	}
	if w.file != nil {
		err = errors.Join(err, w.file.Close())
	}
	return err
}

// firstLine returns the first line of text with its line break, or what fits
// into a record. A character is not cut where that can be.
func firstLine(text []byte) []byte {
	line := text[:min(len(text), MaxText)]
	if i := bytes.IndexByte(line, '\n'); i >= 0 {
		return line[:i+1]
	}
	if len(line) < len(text) {
		return WholeRunes(line)
	}
	return line
}

// WholeRunes returns text without the beginning of a character at its end, for
// which the rest is still to come; all of it when there is nothing else.
func WholeRunes(text []byte) []byte {
	for i := len(text) - 1; i > 0 && i > len(text)-utf8.UTFMax; i-- {
		if utf8.RuneStart(text[i]) {
			if !utf8.FullRune(text[i:]) {
				return text[:i]
			}
			break
		}
	}
	return text
}

// Remove removes a log with all its rotated files. It returns what could not be
// removed; a log that is not there is no error.
func Remove(path string) error {
	var err error
	for _, name := range append(older(path), path) {
		if rerr := os.Remove(name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
