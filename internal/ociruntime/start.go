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

// fifoName is the FIFO in runc's state directory of a container.
const fifoName = "exec.fifo"

// startByFIFO returns false where the runtime has to be called.
func (r *Runtime) startByFIFO(ctx context.Context, id string) (bool, error) {
	dir, ok := r.runcDir(id)
	if !ok {
		return false, nil
	}
	fd, err := unix.Open(filepath.Join(dir, fifoName), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false, nil
	}
	if _, ok := readRuncState(dir, id); !ok {
		return false, nil
	}
	reader, err := r.openFIFO(fd)
	if err != nil {
		return false, nil
	}
	defer unix.Close(reader)
	return r.FinishStart(ctx, id, reader)
}

// openFIFO is what lets init go.
func (r *Runtime) openFIFO(fifo int) (int, error) {
	if r.OpenFIFO != nil {
		if fd, err := r.OpenFIFO(fifo); err == nil {
			return fd, nil
		}
	}
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", fifo), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// FinishStart waits for the word of an init whose FIFO has a reader. It must not
// give up once init may have opened the FIFO: init would then fail to write
// to it. So it waits until init has written, or has ended: false. The word is not
// read: it tells a successor of a caller that is killed here that init was
// let go, for as long as the FIFO has a reader.
func (r *Runtime) FinishStart(ctx context.Context, id string, reader int) (bool, error) {
	dir, ok := r.runcDir(id)
	if !ok {
		return false, nil
	}
	state, ok := readRuncState(dir, id)
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	for {
		spoke, err := readable(reader, fifoCheck)
		if err == nil && !spoke && state.ended() {
			// It may have written and run to its end since. Where it has not, the
			// runtime says best what happened.
			if spoke, err = readable(reader, 0); err == nil && !spoke {
				return false, nil
			}
		}
		switch {
		case err != nil:
			return false, fmt.Errorf("start of %q: wait for init: %w", id, err)
		case spoke:
			// The FIFO that is gone is what tells runc that the container runs.
			if err := os.Remove(filepath.Join(dir, fifoName)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return false, fmt.Errorf("start: %w", err)
			}
			return true, nil
		case ctx.Err() != nil:
			return false, r.failure("start", fmt.Sprintf("init process %d did not answer in time", state.Pid), ctx.Err(), nil)
		}
	}
}

// readable waits for data at most as long as d. A writer that hangs up without
// a word is none.
func readable(fd int, d time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, int(d.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, err
	}
	if err == nil && fds[0].Revents == unix.POLLHUP && d > 0 {
		time.Sleep(time.Millisecond) // poll does not wait then, and init is about to end
	}
	return err == nil && fds[0].Revents&unix.POLLIN != 0, nil
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
		_ = os.Remove(filepath.Join(dir, fifoName)) // what it is for is done
	}
}
