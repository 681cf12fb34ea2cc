package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// adoption makes streams from what a predecessor left with the keeper.
type adoption struct {
	*Streams
	cfg  Config
	kept map[string]*os.File
	spec *loggerSpec // nil without a logger
}

// Adopt goes on where a process that had these streams died. kept has the files
// that the keeper returned, by their names without Config.Name; Adopt takes
// them over, whatever it returns, and does not close the keeper's duplicates when
// it fails. The config must be the one of Open.
//
// What is missing is opened again by its path where that can be; where not, the
// stream ends and the log says why: a container never blocks on a lost stream.
// The process counts as started; where it has ended, the caller says so with
// Exited.
func Adopt(ctx context.Context, cfg Config, kept map[string]*os.File) (*Streams, error) {
	a := adoption{Streams: newStreams(cfg), cfg: cfg, kept: kept}
	defer a.closeUnused()
	if err := errors.Join(ctx.Err(), a.checkTargets()); err != nil {
		return nil, err
	}
	if a.spec != nil {
		a.adoptLogger(a.spec)
	}
	if cfg.Stdio.Terminal {
		a.adoptTerminal()
	} else if a.spec != nil {
		a.adoptStdin()
	} else {
		a.adoptOutput("stdout", cfg.Stdio.Stdout)
		a.adoptOutput("stderr", cfg.Stdio.Stderr)
		a.adoptStdin()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.countLocked()
	a.runLocked()
	return a.Streams, nil
}

func (a *adoption) checkTargets() error {
	spec, err := findLogger(a.cfg.Stdio)
	if err != nil {
		return err
	}
	a.spec = spec
	_, inErr := parseTarget("stdin", a.cfg.Stdio.Stdin)
	_, outErr := parseTarget("stdout", a.cfg.Stdio.Stdout)
	if a.cfg.Stdio.Terminal {
		return errors.Join(inErr, outErr)
	}
	_, errErr := parseTarget("stderr", a.cfg.Stdio.Stderr)
	return errors.Join(inErr, outErr, errErr)
}

// closeUnused closes what no stream took over.
func (a *adoption) closeUnused() {
	for _, f := range a.kept {
		if f != nil {
			_ = f.Close()
		}
	}
}

// take returns a kept file, ready for the poller; nil when it is missing.
func (a *adoption) take(name string) *heldFile {
	f := a.kept[name]
	delete(a.kept, name)
	if f == nil {
		return nil
	}
	defer f.Close()
	ours, err := rewrap(f, name)
	if err != nil {
		a.log.Warn("cannot go on with a kept stream", "stream", a.holder.prefix+name, "error", err)
		return nil
	}
	return a.holder.adopted(name, ours)
}

// rewrap duplicates a file of unknown mode: non-blocking where it can wait.
func rewrap(f *os.File, name string) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var st unix.Stat_t
	err = withFd(conn, func(old uintptr) (err error) {
		if err := unix.Fstat(int(old), &st); err != nil {
			return err
		}
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return os.NewFile(uintptr(fd), name), nil
	}
	return pollable(fd, name)
}

// lost logs what cannot be taken up.
func (a *adoption) lost(stream, why string, err error) {
	a.log.Warn("a stream of a restarted shim is lost", "stream", a.holder.prefix+stream, "reason", why, "error", err)
}

func (a *adoption) adoptOutput(name, value string) {
	pipe, w := a.take(name+keptPipeSuffix), a.take(name+keptSinkSuffix)
	if pipe == nil && w == nil {
		// It had ended, was never there, or went down with the keeper too: nothing can be done.
		return
	}
	o := &output{name: name, pipe: pipe}
	if pipe == nil {
		// All bytes are in the FIFO, which waits for a reader.
		o.sink = a.sinkOf(name, w)
	} else {
		o.sink = a.findSink(name, value, w)
	}
	a.outs = append(a.outs, o)
}

// findSink returns where an output goes on: the kept file, the file of that
// path, or at worst the null device.
func (a *adoption) findSink(name, value string, w *heldFile) *sink {
	if w != nil {
		return a.sinkOf(name, w)
	}
	k, err := a.openSink(name, value, a.cfg.Stdio.Terminal)
	if err != nil {
		a.lost(name, "its destination was not kept and cannot be opened again; output is discarded", err)
		return a.nullSink(value)
	}
	return k
}

func (a *adoption) nullSink(path string) *sink {
	return &sink{kind: toNull, path: path, log: a.log}
}

// sinkOf makes a sink of a kept writer.
func (a *adoption) sinkOf(name string, w *heldFile) *sink {
	k := &sink{path: w.file.Name(), log: a.log, w: w}
	err := withFd(w.conn, func(fd uintptr) (err error) {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO:
			k.kind = toFIFO
			k.reader, err = reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK, k.path)
			return err
		case unix.S_IFREG:
			k.kind = toFile
			flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
			k.copies.Store(flags&unix.O_APPEND != 0)
			return err
		default:
			return errors.New("it is neither a FIFO nor a regular file")
		}
	})
	if err == nil {
		err = k.identify(a.files)
	}
	if err != nil {
		a.lost(name, "its kept destination cannot be used; output is discarded", err)
		k.close()
		return a.nullSink(k.path)
	}
	return k
}

// adoptStdin goes on with the container's stdin, if it had not ended.
func (a *adoption) adoptStdin() {
	pipe := a.take(keptStdinPipe)
	in := a.takeSource()
	if pipe == nil {
		if in != nil {
			in.close()
		}
		return
	}
	if in == nil {
		var err error
		if in, err = a.reopenSource(); err != nil {
			a.lost("stdin", "its source was not kept and cannot be opened again; the container sees EOF", err)
			pipe.close()
			return
		}
	}
	in.pipe = pipe
	a.in = in
}

// takeSource returns the kept client's end of stdin; nil when there is none.
func (a *adoption) takeSource() *input {
	in := &input{log: a.log, src: a.take(keptStdinFile), hold: a.take(keptStdinHold)}
	if in.src != nil {
		return in
	}
	if in.hold == nil {
		return nil
	}
	err := withFd(in.hold.conn, func(fd uintptr) error {
		f, err := reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK, keptStdinFile)
		if err == nil {
			in.src = a.holder.hold(keptStdinFile, f)
		}
		return err
	})
	if err != nil {
		a.lost("stdin", "its source cannot be opened again", err)
		in.hold.close()
		return nil
	}
	return in
}

func (a *adoption) reopenSource() (*input, error) {
	t, err := parseTarget("stdin", a.cfg.Stdio.Stdin)
	if err != nil {
		return nil, err
	}
	in, err := openSource(t, a.holder)
	if err == nil && in == nil {
		err = fmt.Errorf("stdin %q has nothing to read", a.cfg.Stdio.Stdin)
	}
	return in, err
}

func (a *adoption) adoptTerminal() {
	master, w := a.take(keptPty), a.take(outputNames[0]+keptSinkSuffix)
	in := a.takeSource()
	if master == nil {
		a.lost(keptPty, "the terminal cannot be opened again", errors.New("it was not kept"))
		if in != nil {
			in.close()
		}
		if a.spec != nil {
			w.close()
		} else if w != nil {
			// What was copied is in the FIFO; its reader sees EOF after it.
			a.outs = []*output{{name: outputNames[0], sink: a.sinkOf(outputNames[0], w)}}
		}
		return
	}
	a.in = in
	a.term = &terminal{master: master}
	switch {
	case a.spec == nil:
		a.term.sink = a.findSink(outputNames[0], a.cfg.Stdio.Stdout, w)
	case w == nil:
		a.term.sink = a.nullSink(a.spec.path)
	default:
		a.term.sink = &sink{kind: toLogger, path: a.spec.path, log: a.log, w: w}
	}
}
