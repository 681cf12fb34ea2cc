package stdio

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/logfile"
)

const (
	// lineHold is how long the beginning of a line waits in its pipe for the
	// rest, so that a line is one record.
	lineHold = 50 * time.Millisecond
	// lineTries is how often it is looked at meanwhile: a container that writes
	// byte by byte is not to be copied over and over.
	lineTries = 16
)

// errPartial says that a pipe has only the beginning of a line.
var errPartial = errors.New("the line is not complete")

// recorder is a log that all streams which go there share.
type recorder struct {
	files *Files
	cfg   logfile.Config
	users int // guarded by files.mu

	mu   sync.Mutex
	log  *logfile.Writer // guarded by mu
	peek [2]int          // a pipe, empty while mu is free; guarded by mu
	text []byte          // guarded by mu
}

// recorder returns the log with this path, opened by the first who asks.
// release gives it back.
func (f *Files) recorder(cfg logfile.Config) (*recorder, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.logs[cfg.Path]; r != nil {
		if r.cfg != cfg {
			return nil, errors.Join(errors.New("another process logs there with other options: "+r.cfg.URI()), errdefs.ErrFailedPrecondition)
		}
		r.users++
		return r, nil
	}
	log, err := logfile.Open(cfg)
	if err != nil {
		return nil, err
	}
	r := &recorder{files: f, cfg: cfg, users: 1, log: log, text: make([]byte, logfile.MaxText)}
	if err := unix.Pipe2(r.peek[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if f.logs == nil {
		f.logs = map[string]*recorder{}
	}
	f.logs[cfg.Path] = r
	return r, nil
}

// release is called once for each call of [Files.recorder], when nothing more
// will be written. nil is no log.
func (r *recorder) release() error {
	if r == nil {
		return nil
	}
	r.files.mu.Lock()
	defer r.files.mu.Unlock()
	if r.users--; r.users > 0 {
		return nil
	}
	// Under the lock: who opens the path next must find a file that is closed.
	delete(r.files.logs, r.cfg.Path)
	return errors.Join(r.log.Close(), unix.Close(r.peek[0]), unix.Close(r.peek[1]))
}

// write stores text.
func (r *recorder) write(stream string, p []byte) (lost int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(stream, time.Now(), p)
}

// take stores whole lines that a pipe has and takes them out of it afterwards:
// who is killed in between leaves them in both places, and none in neither.
// errPartial says that there is no whole line, and nothing was done; with
// flush, what is there is stored. 0 without an error is the end of the pipe.
// The last result is what became of the log.
func (r *recorder) take(pipe int, stream string, flush bool) (n, lost int, err, logErr error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	got, err := unix.Tee(pipe, r.peek[1], len(r.text), unix.SPLICE_F_NONBLOCK)
	there := int(got)
	if there <= 0 || err != nil {
		return 0, 0, err, nil
	}
	text := r.text[:there]
	if err := readFull(r.peek[0], text); err != nil {
		return 0, 0, err, nil
	}
	if i := bytes.LastIndexByte(text, '\n'); i >= 0 {
		text = text[:i+1]
	} else if flush || len(text) == len(r.text) {
		text = logfile.WholeRunes(text)
	} else if all, err := queued(uintptr(pipe)); err == nil && all > there {
		text = logfile.WholeRunes(text) // the container fills its pipe with crumbs
	} else {
		return 0, 0, errPartial, nil
	}
	lost, logErr = r.log.Write(stream, time.Now(), text)
	return len(text), lost, readFull(pipe, text), logErr
}

// readFull reads what is known to be there.
func readFull(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := readNow(uintptr(fd), p)
		if err == nil && n == 0 {
			err = errors.New("a pipe lost bytes")
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// writeLog is write for a log. The beginning of a character waits for its rest.
func (k *sink) writeLog(p []byte) {
	text := append(k.cut, p...)
	whole := logfile.WholeRunes(text)
	k.cut = text[len(whole):len(text):len(text)]
	k.failedLog(k.rec.write(k.stream, whole))
}

// endLog stores what still waits.
func (k *sink) endLog() {
	if len(k.cut) > 0 {
		k.failedLog(k.rec.write(k.stream, k.cut))
	}
}

// failedLog counts lost bytes; an error without a loss is a rotation's.
func (k *sink) failedLog(lost int, err error) {
	if lost == 0 && err != nil {
		k.mu.Lock()
		report := time.Since(k.logged) >= logInterval
		if report {
			k.logged = time.Now()
		}
		k.mu.Unlock()
		if report {
			k.log.Warn("a log grows beyond its size", "path", k.path, "error", err)
		}
		return
	}
	k.failed(err, lost)
}

// record is take for a log.
func (k *sink) record(src *heldFile) (n int64, err error) {
	tries := 0
	now := func(fd uintptr, flush bool) {
		var taken, lost int
		var logErr error
		taken, lost, err, logErr = k.rec.take(int(fd), k.stream, flush)
		n = int64(taken)
		k.failedLog(lost, logErr)
	}
	stopped := src.conn.Read(func(fd uintptr) bool {
		revents := pollNow(fd, unix.POLLIN)
		if revents == 0 || tries > lineTries && revents&unix.POLLHUP == 0 {
			return false
		}
		now(fd, revents&unix.POLLHUP != 0)
		if err != errPartial {
			return err != unix.EAGAIN
		}
		if tries == 0 {
			_ = src.file.SetReadDeadline(time.Now().Add(lineHold)) // a closed file is noticed by Read
		}
		tries++
		return false
	})
	if tries > 0 {
		_ = src.file.SetReadDeadline(time.Time{})
	}
	if errors.Is(stopped, os.ErrDeadlineExceeded) {
		stopped = src.conn.Control(func(fd uintptr) { now(fd, true) })
	}
	if stopped != nil {
		return 0, errStopped
	}
	return n, err
}
