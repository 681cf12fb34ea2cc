// Package stdio moves the bytes of one process between the container and the
// client: anonymous pipes or a pty on the one side, a FIFO, a file or the null
// device on the other.
//
// Bytes of pipes never enter this process: splice(2) moves them from one
// kernel buffer to the next, so a process that is killed while it moves them
// loses none. What goes to a log of JSON lines is copied, and is taken out of
// the pipe only when it is in the log: who is killed in between stores up to
// 16 KiB twice. A pty is copied through a small buffer. Nothing here blocks an
// OS thread but writes to regular files: everything else is non-blocking and
// waits in Go's poller, one goroutine a stream.
package stdio

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"github.com/berthd/berth/task"
)

// Keeper holds duplicates of files for a successor of this process. Its
// methods must be bounded in time and safe for concurrent use.
type Keeper interface {
	// Keep stores a duplicate of f under the name, in place of an older one. f
	// stays the caller's. The duplicate shares f's O_NONBLOCK, so f must be
	// read with SyscallConn: what makes it blocking breaks the owner.
	Keep(name string, f *os.File) error
	// Drop closes the duplicate. When it returns, the peer of the file can see
	// its end. An unknown name is nothing to do.
	Drop(name string)
}

// Config says where the streams of a process go.
type Config struct {
	// Stdio names the client's ends. Each is empty or /dev/null (the null
	// device), a path or fifo:// URI of a FIFO, the path of an existing regular
	// file, or a file:// URI of a file that is made (0644, its parents 0755)
	// when it does not exist, or the json-file:// URI of a log (see package
	// logfile). Files are written at their end. Where Stdout and Stderr are the
	// same FIFO or file, the container gets one pipe for both, which keeps the
	// order of what it writes. With Terminal, Stderr is not used. Stdout may also be
	// a logger's binary:// or binary-v2:// URI; Stderr is then the same or empty.
	Stdio task.Stdio
	// UID and GID own the ends of the pipes that the container uses; 0 and 0
	// leave them to root.
	UID, GID int
	// Namespace and ID are what a logger is told of the process.
	Namespace, ID string
	// Name is the prefix of the names given to Keeper: Name + "/stdout.r".
	Name string
	// Keeper gets duplicates of all that a successor needs for [Adopt]. nil:
	// nothing is kept. A file that cannot be kept is logged, not an error.
	Keeper Keeper
	// Dir is where the console socket's directory is made. It must exist.
	// Where it is empty, or too long for the path of a socket, the directory for
	// temporary files is used. Only terminals need it.
	Dir string
	// Watcher tells of readers that come late; one can serve all streams of a
	// process, and should: the kernel allows a user few of them. nil: the
	// streams make their own when they need one.
	Watcher *Watcher
	// Files keeps apart what goes to one file from the processes that have it
	// here. nil: the streams must be the only ones with their files.
	Files *Files
	// Log gets what happens to the streams after Open. nil: nothing is logged.
	Log *slog.Logger
}

// Names of kept files, after Config.Name.
const (
	keptStdinPipe  = "stdin.w"    // our end of the container's stdin
	keptStdinFile  = "stdin.r"    // the client's FIFO or file
	keptStdinHold  = "stdin.hold" // our own writer of that FIFO: no EOF before CloseStdin
	keptPipeSuffix = ".r"         // our end of the container's stdout or stderr
	keptSinkSuffix = ".w"         // the client's FIFO or file
	keptPty        = "pty"        // the master
	keptLogger     = "logger"     // pidfd of a logger
	keptLoggerErrs = "logger.err" // our end of its standard error
)

// Streams are the open streams of one process. They come from [Open], before
// the process is made, or from [Adopt]. Close frees them in any case. All
// methods are safe for concurrent use.
type Streams struct {
	log    *slog.Logger
	holder holder
	files  *Files

	// Set by Open and Adopt, then only read. A stream that goes to the null
	// device has no entry.
	in      *input
	outs    []*output
	console *consoleSocket
	term    *terminal // non-nil for a terminal; its master comes with Started
	logger  *logger   // nil without

	watch   watcherRef
	drained chan struct{} // closed by outputEnded, or by Close before Started
	closing chan struct{} // closed when the movers must end
	closed  chan struct{} // closed when Close is done
	wg      sync.WaitGroup

	mu       sync.Mutex
	phase    phase            // guarded by mu
	runtime  [3]*os.File      // guarded by mu; nil from Started on
	left     int              // guarded by mu; outputs that have not ended
	size     task.ConsoleSize // guarded by mu; asked for before there was a terminal
	closeErr error            // written before closed is closed
}

type phase uint8

const (
	phaseOpen phase = iota
	phaseRunning
	phaseClosed
)

// Open opens the client's ends and makes the container's. It never waits for a
// client, but for a logger to be ready. A bad destination is InvalidArgument, a missing one NotFound; when
// it fails nothing is left open.
func Open(ctx context.Context, cfg Config) (*Streams, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := newStreams(cfg)
	open := s.openPipes
	if cfg.Stdio.Terminal {
		open = s.openTerminal
	}
	err := open(cfg)
	if err == nil && s.logger != nil {
		err = s.logger.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.countLocked()
	return s, nil
}

// countLocked counts the outputs that are to end.
func (s *Streams) countLocked() {
	s.left = len(s.outs)
	if s.term != nil {
		s.left++
	}
	if s.logger != nil {
		s.left++
	}
}

func newStreams(cfg Config) *Streams {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	files := cfg.Files
	if files == nil {
		files = &Files{}
	}
	return &Streams{
		log:     log,
		files:   files,
		holder:  holder{prefix: cfg.Name + "/", keeper: cfg.Keeper, log: log},
		watch:   watcherRef{shared: cfg.Watcher, log: log},
		size:    cfg.Stdio.Size,
		drained: make(chan struct{}),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
	}
}

func (s *Streams) openPipes(cfg Config) error {
	if err := s.openInput(cfg); err != nil {
		return err
	}
	if s.in != nil {
		theirs, ours, err := containerPipe(cfg.UID, cfg.GID, containerReads)
		if err != nil {
			return err
		}
		s.runtime[0], s.in.pipe = theirs, s.holder.hold(keptStdinPipe, ours)
	}
	spec, err := findLogger(cfg.Stdio)
	if err != nil {
		return err
	}
	if spec != nil {
		return errors.Join(s.openLogger(spec, cfg), s.fillWithNull())
	}
	for i, value := range []string{cfg.Stdio.Stdout, cfg.Stdio.Stderr} {
		var err error
		if s.runtime[i+1], err = s.openOutput(outputNames[i], value, cfg); err != nil {
			return err
		}
	}
	return s.fillWithNull()
}

// openOutput returns the container's end of an output; nil for the null
// device. What goes to the same place as another output goes through its pipe:
// of two pipes nobody could tell what was written first.
func (s *Streams) openOutput(name, value string, cfg Config) (*os.File, error) {
	opened, err := findTarget(name, value)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	if opened.kind == toNull {
		return nil, nil
	}
	if len(s.outs) > 0 && opened.node != (node{}) && s.outs[0].sink.node == opened.node {
		return s.runtime[1], nil
	}
	sink, err := opened.sink(name, s.holder, s.files, false)
	if err != nil {
		return nil, err
	}
	o := &output{name: name, sink: sink}
	s.outs = append(s.outs, o)
	theirs, ours, err := containerPipe(cfg.UID, cfg.GID, containerWrites)
	if err != nil {
		return nil, err
	}
	o.pipe = s.holder.hold(name+keptPipeSuffix, ours)
	return theirs, nil
}

// fillWithNull gives the container the null device for each stream that has no
// pipe. It is open for both directions: not every runtime opens it anew.
func (s *Streams) fillWithNull() error {
	for i, f := range s.runtime {
		if f != nil {
			continue
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		s.runtime[i] = null
	}
	return nil
}

// openInput opens the client's stdin, if it has one.
func (s *Streams) openInput(cfg Config) error {
	t, err := parseTarget("stdin", cfg.Stdio.Stdin)
	if err != nil || t.null() {
		return err
	}
	in, err := openSource(t, s.holder)
	if err != nil {
		return err
	}
	s.in = in
	return nil
}

// openSink opens the client's end of an output. It is recorded for Close by
// what the sink is put into, so nothing may fail in between.
func (s *Streams) openSink(name, value string, appendMode bool) (*sink, error) {
	opened, err := findTarget(name, value)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	return opened.sink(name, s.holder, s.files, appendMode)
}
