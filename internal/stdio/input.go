package stdio

import (
	"errors"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// input is a stream from the client to the container.
type input struct {
	log *slog.Logger
	src *heldFile // the client's FIFO or file
	// hold is our own writer of the FIFO: without it the container would see EOF
	// when a client detaches. CloseStdin closes it. nil for a file.
	hold *heldFile
	// pipe is our end of the container's pipe; nil for a terminal.
	pipe *heldFile
}

// openSource opens the client's end of stdin; nil for the null device.
func openSource(t target, h holder) (*input, error) {
	opened, err := openTarget(t)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	in := &input{log: h.log}
	switch opened.kind {
	case toNull:
		return nil, nil
	case toFile:
		f, err := reopen(uintptr(opened.fd), unix.O_RDONLY, t.path)
		if err != nil {
			return nil, t.fail(err)
		}
		in.src = h.hold(keptStdinFile, f)
		return in, nil
	}
	r, err := reopen(uintptr(opened.fd), unix.O_RDONLY|unix.O_NONBLOCK, t.path)
	if err != nil {
		return nil, t.fail(err)
	}
	w, err := reopen(uintptr(opened.fd), unix.O_WRONLY|unix.O_NONBLOCK, t.path)
	if err != nil {
		return nil, errors.Join(t.fail(err), r.Close())
	}
	in.src, in.hold = h.hold(keptStdinFile, r), h.hold(keptStdinHold, w)
	return in, nil
}

// run moves the client's bytes into the container's pipe until one of the two
// ends, then closes both: the container sees EOF, a client that goes on
// writing EPIPE.
func (in *input) run() {
	defer in.close()
	p := splicer{src: in.src.conn, dst: in.pipe.conn}
	for {
		n, err := p.move()
		switch {
		case err == unix.EINVAL:
			// The file system cannot splice.
			in.copyTo(func(b []byte) error { _, err := in.pipe.file.Write(b); return err })
			return
		case err != nil:
			in.report(err)
			return
		case n == 0:
			return
		}
	}
}

// copyTo moves the client's bytes through a buffer until the client's end or
// an error of write. It reports whether it met the end.
func (in *input) copyTo(write func([]byte) error) (eof bool) {
	for {
		buf, n, err := readChunk(in.src.conn)
		if n > 0 {
			err = write(buf[:n])
		}
		putBuffer(buf)
		if err != nil {
			in.report(err)
			return false
		}
		if n == 0 {
			return true
		}
	}
}

// report logs an error that is not one of the ways in which a stdin ends: the
// container closed its end, or we did.
func (in *input) report(err error) {
	if err != errStopped && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) {
		in.log.Warn("stdin ended early", "path", in.src.file.Name(), "error", err)
	}
}

// close ends the stream at once; run returns. The container's end goes first:
// a mover may wait there while it uses the other one.
func (in *input) close() {
	in.pipe.close()
	in.src.close()
	in.hold.close()
}
