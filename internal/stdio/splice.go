package stdio

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// spliceMax is the most that one call moves. A pipe gives what it has; the
// bound is for a writer that keeps up with a fast file.
const spliceMax = 1 << 20

// errStopped says that a file was closed by ourselves while it was in use.
var errStopped = errors.New("stream closed")

// splicer moves bytes from src to dst inside the kernel. One of the two is a
// pipe or FIFO. The other may be a regular file.
type splicer struct {
	src, dst syscall.RawConn
	// end is where to write in dst when it is a regular file: splice refuses
	// O_APPEND. Its lock makes seek and splice one step for all movers to that
	// file. Others are not kept out: who truncates the file between the two
	// (logrotate's copytruncate) gets a hole, never a loss.
	end *fileEnd
}

// move waits until there are bytes and room, and moves what it can. 0 without
// an error is the end of src. An error is errStopped or what splice said.
func (p *splicer) move() (int64, error) {
	for {
		n, full, err := p.try()
		if !full {
			return n, err
		}
		if err := p.dst.Write(func(fd uintptr) bool { return ready(fd, unix.POLLOUT) }); err != nil {
			return 0, errStopped
		}
	}
}

// try waits for src and splices once. full says that dst had no room.
func (p *splicer) try() (n int64, full bool, err error) {
	stopped := p.src.Read(func(s uintptr) bool {
		if n, err = p.once(int(s)); err != unix.EAGAIN {
			return true
		}
		// EAGAIN does not say which side to wait for.
		if !ready(s, unix.POLLIN) {
			return false
		}
		if atEnd(s) {
			// A full dst hides the end of src.
			err = nil
			return true
		}
		full = true
		return true
	})
	if stopped != nil {
		return 0, false, errStopped
	}
	return n, full, err
}

// once splices without waiting for a pipe.
func (p *splicer) once(s int) (n int64, err error) {
	if p.end != nil {
		p.end.Lock()
		defer p.end.Unlock()
	}
	if p.dst.Write(func(d uintptr) bool { n, err = p.splice(s, int(d)); return true }) != nil {
		return 0, errStopped
	}
	return n, err
}

func (p *splicer) splice(s, d int) (int64, error) {
	if p.end != nil {
		if _, err := unix.Seek(d, 0, unix.SEEK_END); err != nil {
			return 0, err
		}
	}
	for {
		n, err := unix.Splice(s, nil, d, nil, spliceMax, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), err
	}
}

// atEnd asks whether a pipe is empty and without writers.
func atEnd(fd uintptr) bool {
	if revents := pollNow(fd, unix.POLLIN); revents&unix.POLLIN != 0 || revents&unix.POLLHUP == 0 {
		return false
	}
	// poll looks for bytes first and for writers then, so the last writer may have
	// written in between. Now that it is gone, the count is final.
	n, err := queued(fd)
	return err == nil && n == 0
}

// queued returns how many bytes wait in a pipe or FIFO.
func queued(fd uintptr) (int, error) {
	n, err := unix.IoctlGetUint32(int(fd), unix.TIOCINQ)
	return int(n), err
}

// ready asks without waiting whether fd has one of the events, or an error or
// a hang-up, which end a wait as well.
func ready(fd uintptr, events int16) bool { return pollNow(fd, events) != 0 }

// pollNow returns the events that fd has now.
func pollNow(fd uintptr, events int16) int16 {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return unix.POLLERR
		}
		return fds[0].Revents
	}
}
