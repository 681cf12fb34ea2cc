// Package attach is the client's side of a container's standard streams: FIFOs
// that the shim opens at its end, and the copying between them and the user's
// terminal, files or pipes.
package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is asked for the FIFOs of the outputs; the default of 64 KiB makes
// a fast writer wait more often than needed.
const pipeSize = 256 << 10

// Config says what to attach.
type Config struct {
	// Parent is the directory that gets a directory of FIFOs; it is made, for
	// the owner alone, where it is missing.
	Parent string
	// ID is the id of the process: the container's or the exec's.
	ID string
	// Terminal: one stream for both outputs; Stderr is not used.
	Terminal bool
	// Stdin, Stdout and Stderr are the user's ends, nil for a stream that is
	// not attached. They stay the caller's.
	Stdin, Stdout, Stderr *os.File
	// DetachKeys are bytes of the user's input that are not passed on: they
	// let go of the process. Empty for none.
	DetachKeys []byte
}

// IO is one attached process. The order of calls is New, Start once the
// process runs, Drain when it has ended, Close.
type IO struct {
	cfg    Config
	dir    string
	input  string   // the FIFO of stdin
	stdin  *os.File // O_RDWR until Start, then the write end
	pumps  []*pump
	broken chan struct{}
	err    error     // set before broken is closed
	once   sync.Once // sets err and closes broken
	// detached is closed by the copying of stdin.
	detached chan struct{}
	// kept: the FIFOs stay after Close. Set before the goroutines start, or by
	// the caller's own.
	kept bool
}

// New makes the FIFOs. Nothing of them is left after Close, or on an error.
func New(cfg Config) (_ *IO, err error) {
	if err := os.MkdirAll(cfg.Parent, 0o700); err != nil {
		return nil, fmt.Errorf("directory for the streams: %w", err)
	}
	dir, err := os.MkdirTemp(cfg.Parent, dirPrefix)
	if err != nil {
		return nil, fmt.Errorf("directory for the streams: %w", err)
	}
	io := &IO{cfg: cfg, dir: dir, broken: make(chan struct{}), detached: make(chan struct{})}
	defer func() {
		if err != nil {
			io.Close()
		}
	}()
	if cfg.Stdin != nil {
		// Read and write: the open of one end would wait for the other.
		io.input = io.path("stdin")
		if io.stdin, err = mkfifo(io.input); err != nil {
			return nil, err
		}
	}
	for _, out := range []struct {
		name string
		dst  *os.File
	}{{"stdout", cfg.Stdout}, {"stderr", cfg.Stderr}} {
		if out.dst == nil || cfg.Terminal && out.name == "stderr" {
			continue
		}
		p, err := newPump(io.path(out.name), out.dst)
		if err != nil {
			return nil, err
		}
		io.pumps = append(io.pumps, p)
	}
	return io, nil
}

func (io *IO) path(stream string) string {
	return filepath.Join(io.dir, io.cfg.ID+"-"+stream)
}

// Paths are the FIFOs to name in a request, empty for streams not attached.
func (io *IO) Paths() (stdin, stdout, stderr string) {
	if io.cfg.Stdin != nil {
		stdin = io.path("stdin")
	}
	if io.cfg.Stdout != nil {
		stdout = io.path("stdout")
	}
	if io.cfg.Stderr != nil && !io.cfg.Terminal {
		stderr = io.path("stderr")
	}
	return stdin, stdout, stderr
}

// mkfifo makes a FIFO and opens it for reading and writing, which no FIFO
// makes wait.
func mkfifo(name string) (*os.File, error) {
	if err := unix.Mkfifo(name, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: name, Err: err}
	}
	return os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
}

// Start begins to copy. The shim has opened its ends by now, so that its
// leaving is seen as the end of the streams. closeStdin is called when the
// user's input has ended; it tells the shim.
func (io *IO) Start(closeStdin func()) error {
	for _, p := range io.pumps {
		p.start(io.breakOff)
	}
	if io.stdin == nil {
		return nil
	}
	w, err := os.OpenFile(io.input, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	io.stdin.Close()
	io.stdin = w
	// Nobody waits for this goroutine: a read of the user's terminal or pipe
	// cannot be interrupted, and what it holds ends with the program.
	go func() {
		if copyInput(w, io.cfg.Stdin, io.cfg.DetachKeys) {
			close(io.detached)
			return
		}
		w.Close()
		closeStdin()
	}()
	return nil
}

// Open attaches to a process whose FIFOs are there already; empty paths are
// streams that are left out. They stay after Close. Start follows.
func Open(cfg Config, stdin, stdout, stderr string) (_ *IO, err error) {
	io := &IO{cfg: cfg, broken: make(chan struct{}), detached: make(chan struct{}), kept: true}
	defer func() {
		if err != nil {
			io.Close()
		}
	}()
	if stdin != "" && cfg.Stdin != nil {
		io.input = stdin
		// Not for writing alone: that fails where the shim has closed its end.
		if io.stdin, err = os.OpenFile(stdin, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err != nil {
			return nil, err
		}
	}
	for _, out := range []struct {
		name string
		dst  *os.File
	}{{stdout, cfg.Stdout}, {stderr, cfg.Stderr}} {
		if out.name == "" || out.dst == nil {
			continue
		}
		src, err := os.OpenFile(out.name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		io.pumps = append(io.pumps, &pump{src: src, dst: out.dst, done: make(chan struct{})})
	}
	return io, nil
}

// Detached is closed when the user has typed the detach keys.
func (io *IO) Detached() <-chan struct{} { return io.detached }

// Keep leaves the FIFOs to the process: Close will not remove them. A later
// Open attaches again.
func (io *IO) Keep() { io.kept = true }

func (io *IO) breakOff(err error) {
	io.once.Do(func() {
		io.err = err
		close(io.broken)
	})
}

// Broken is closed when an output cannot be written to the user's end; from
// then on it is dropped.
func (io *IO) Broken() <-chan struct{} { return io.broken }

// Err is why Broken is closed: EPIPE when the reader is gone.
func (io *IO) Err() error { return io.err }

// Drain waits for the end of the outputs and says whether it came. It gives up
// when nothing has come for the time quiet: a child in the background may hold
// the streams for ever. A reader that is slow is waited for.
func (io *IO) Drain(ctx context.Context, quiet time.Duration) bool {
	all := true
	for _, p := range io.pumps {
		all = p.drain(ctx, quiet) && all
	}
	return all
}

// Close ends the copying of outputs and removes the FIFOs, and those that killed
// clients left beside them.
func (io *IO) Close() error {
	var errs []error
	for _, p := range io.pumps {
		p.close()
	}
	if io.stdin != nil {
		io.stdin.Close()
	}
	if io.kept {
		return errors.Join(errs...)
	}
	if err := os.RemoveAll(io.dir); err != nil {
		errs = append(errs, err)
	}
	sweep(io.cfg.Parent)
	return errors.Join(errs...)
}
