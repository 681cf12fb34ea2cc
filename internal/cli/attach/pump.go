package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// moveSize is the most that one splice moves.
const moveSize = 1 << 20

// pump moves the bytes of one FIFO to a file of the user's, inside the kernel
// where the kernel can.
type pump struct {
	src, hold *os.File // hold is a write end of our own, until the shim has one
	dst       *os.File
	moved     atomic.Uint64 // bytes; for drain to see progress
	writing   atomic.Bool   // a write to dst is under way
	done      chan struct{} // closed by run
	started   bool
}

func newPump(name string, dst *os.File) (*pump, error) {
	hold, err := mkfifo(name)
	if err != nil {
		return nil, err
	}
	src, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		hold.Close()
		return nil, err
	}
	// Best effort: a user over the limit for pipes keeps the default.
	_ = control(src, func(fd int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) })
	return &pump{src: src, hold: hold, dst: dst, done: make(chan struct{})}, nil
}

// start lets go of our own write end and runs the pump.
func (p *pump) start(broken func(error)) {
	p.started = true
	if p.hold != nil {
		p.hold.Close()
	}
	go func() {
		defer close(p.done)
		if err := p.run(); err != nil {
			broken(err)
			// Reading goes on, or the container would stop in its next write.
			p.discard()
		}
	}()
}

// run moves until the end of the stream, close, or an error of dst.
func (p *pump) run() error {
	raw, err := p.src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := p.dst.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n int64
		var moveErr error
		err := raw.Read(func(src uintptr) bool {
			ctlErr := out.Control(func(dst uintptr) { n, moveErr = p.move(int(src), int(dst)) })
			if ctlErr != nil {
				moveErr = ctlErr
			}
			return !errors.Is(moveErr, unix.EAGAIN)
		})
		if err != nil {
			return ignoreEnd(err)
		}
		switch {
		case errors.Is(moveErr, unix.EINVAL):
			return p.copy() // the file takes no splice: append mode, some terminals
		case moveErr != nil:
			return moveErr
		case n == 0:
			return nil
		}
		p.moved.Add(uint64(n))
	}
}

// move is one splice. It waits for room in dst, and returns EAGAIN only where
// src has nothing.
func (p *pump) move(src, dst int) (int64, error) {
	p.writing.Store(true)
	defer p.writing.Store(false)
	for {
		n, err := unix.Splice(src, nil, dst, nil, moveSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && ready(src, unix.POLLIN, 0):
			// The source has bytes, so it is the destination that is full.
			ready(dst, unix.POLLOUT, -1)
			continue
		}
		return n, err
	}
}

// ready polls one descriptor; wait is in milliseconds, -1 for no limit.
func ready(fd int, events int16, wait int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(fds, wait)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// copy moves through a buffer.
func (p *pump) copy() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := p.src.Read(buf)
		if n > 0 {
			p.writing.Store(true)
			_, werr := p.dst.Write(buf[:n])
			p.writing.Store(false)
			if werr != nil {
				return werr
			}
			p.moved.Add(uint64(n))
		}
		if err != nil {
			return ignoreEnd(err)
		}
	}
}

// discard reads to the end.
func (p *pump) discard() {
	buf := make([]byte, 64<<10)
	for {
		n, err := p.src.Read(buf)
		p.moved.Add(uint64(n))
		if err != nil {
			return
		}
	}
}

// drain waits for run to end; see IO.Drain.
func (p *pump) drain(ctx context.Context, quiet time.Duration) bool {
	if !p.started {
		return true
	}
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	for last := p.moved.Load(); ; {
		select {
		case <-p.done:
			return true
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
		now := p.moved.Load()
		waiting := false
		_ = control(p.src, func(fd int) { waiting = ready(fd, unix.POLLIN, 0) })
		if now == last && !waiting && !p.writing.Load() {
			return false
		}
		last = now
		timer.Reset(quiet)
	}
}

// close ends run. A write to the user's file that is stuck is not waited for;
// it ends with the program.
func (p *pump) close() {
	_ = p.src.SetReadDeadline(time.Unix(1, 0))
	if p.started && !p.writing.Load() {
		select {
		case <-p.done:
		case <-time.After(time.Second):
		}
	}
	if !p.started && p.hold != nil {
		p.hold.Close()
	}
	p.src.Close()
}

// copyInput copies the user's input until either end is gone, or until the
// keys come, which it tells. The keys are not copied; their beginning is held
// back until it is known to be no more than that.
func copyInput(dst, src *os.File, keys []byte) (detached bool) {
	if len(keys) == 0 {
		_, _ = io.Copy(onlyWriter{dst}, onlyReader{src})
		return false
	}
	buf := make([]byte, 4096)
	held := 0
	for {
		n, err := src.Read(buf)
		var out []byte
		for _, c := range buf[:n] {
			if c != keys[held] && held > 0 {
				out = append(out, keys[:held]...)
				held = 0
			}
			if c != keys[held] {
				out = append(out, c)
			} else if held++; held == len(keys) {
				_, _ = dst.Write(out)
				return true
			}
		}
		if len(out) > 0 {
			if _, err := dst.Write(out); err != nil {
				return false
			}
		}
		if err != nil {
			_, _ = dst.Write(keys[:held])
			return false
		}
	}
}

// ParseKeys reads docker's detach keys: characters and "ctrl-" letters, with
// commas between them.
func ParseKeys(s string) ([]byte, error) {
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		c, ctrl := strings.CutPrefix(k, "ctrl-")
		switch {
		case len(c) != 1 || c[0] >= 0x7f || c[0] <= ' ':
		case !ctrl:
			keys = append(keys, c[0])
			continue
		case c[0] >= '@' && c[0] <= '_' || c[0] >= 'a' && c[0] <= 'z':
			keys = append(keys, c[0]&0x1f)
			continue
		}
		return nil, fmt.Errorf("invalid detach keys %q (use e.g. ctrl-p,ctrl-q)", s)
	}
	return keys, nil
}

// onlyReader and onlyWriter keep io.Copy from splicing: the user's input may
// be a terminal, and a FIFO's other end may block.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

func control(f *os.File, fn func(fd int)) error {
	var raw syscall.RawConn
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { fn(int(fd)) })
}
