package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Start runs the user's program in a created container.
//
// All that `runc start` does is to read the FIFO that init waits at; the rest
// of its time, some 8 ms, goes into starting a process. Where runc's state shows that
// FIFO (it has since runc 1.0; seen up to 1.5.2), Start reads it by itself. Any other
// runtime, and any surprise, gets the call.
func (r *Runtime) Start(ctx context.Context, id string) error {
	started, err := r.startByFIFO(ctx, id)
	if started || err != nil {
		return err
	}
	return r.simple(ctx, "start", id)
}

// fifoCheck is how often the wait for init looks whether init still lives.
const fifoCheck = 50 * time.Millisecond

// startByFIFO returns false where the runtime has to be called. It must not
// give up once init may have opened the FIFO: init would then fail to write
// to it. So it waits until init has written, or has ended.
func (r *Runtime) startByFIFO(ctx context.Context, id string) (bool, error) {
	dir, ok := r.runcDir(id)
	if !ok {
		return false, nil
	}
	state, ok := readRuncState(dir, id)
	if !ok {
		return false, nil
	}
	path := filepath.Join(dir, "exec.fifo")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(fifoCheck.Milliseconds()))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("start of %q: wait for init: %w", id, err)
		case n > 0:
			return r.readFIFO(fd, path)
		case state.ended():
			// It may have written and run to its end since the poll. Where it
			// has not, the runtime says best what happened.
			return r.readFIFO(fd, path)
		case ctx.Err() != nil:
			return false, r.failure("start", fmt.Sprintf("init process %d did not answer within %s", state.Pid, r.timeout()), ctx.Err(), nil)
		}
	}
}

// readFIFO takes init's byte. The FIFO that is gone is what tells runc that
// the container runs.
func (r *Runtime) readFIFO(fd int, path string) (bool, error) {
	buf := make([]byte, 8)
	if n, _ := unix.Read(fd, buf); n <= 0 {
		return false, nil // init ended without a word
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("start: %w", err)
	}
	return true, nil
}

// Started says that a created container runs its program: a start was broken
// off after init had been let go, and before that was noted. runc is told; other
// runtimes may go on calling the container created.
func (r *Runtime) Started(id string) {
	dir, ok := r.runcDir(id)
	if !ok {
		return
	}
	if _, ok := readRuncState(dir, id); ok {
		_ = os.Remove(filepath.Join(dir, "exec.fifo")) // what it is for is done
	}
}
