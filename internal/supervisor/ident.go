package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process identity: a pid alone may be used anew, a pid with the time at
// which the process started is not.
type identity struct {
	pid int
	// start is field 22 of /proc/PID/stat, in clock ticks since boot.
	start string
}

// identify reads who has the pid now; ok is false when there is no such
// process, or only what is left of it until it is waited for.
func identify(pid int) (id identity, ok bool) {
	if pid <= 0 {
		return identity{}, false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, false
	}
	// The name, field 2, may hold anything; it ends with the last ')'.
	_, rest, found := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	fields := strings.Fields(string(rest))
	if !found || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return identity{}, false
	}
	return identity{pid: pid, start: fields[19]}, true
}

// alive says whether the process still exists.
func (id identity) alive() bool {
	now, ok := identify(id.pid)
	return ok && now == id
}

// kill ends the process. The pidfd is taken before the identity is checked,
// so that the signal can reach no other.
func (id identity) kill() error {
	fd, err := unix.PidfdOpen(id.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", id.pid, err)
	}
	defer unix.Close(fd)
	if !id.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", id.pid, err)
	}
	return nil
}

// parseIdentity reads a pid file: "PID START\n".
func parseIdentity(data []byte) (identity, bool) {
	fields := strings.Fields(string(data))
	if len(fields) != 2 {
		return identity{}, false
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil || pid <= 0 {
		return identity{}, false
	}
	return identity{pid: pid, start: fields[1]}, true
}

// awaitExit waits until the child has ended and reaps it, or until ctx ends;
// then the child is left to the next parent.
func awaitExit(ctx context.Context, p *os.Process) (*os.ProcessState, error) {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", p.Pid, err)
	}
	// Non-blocking, so that the runtime's poller takes it: no thread waits.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := raw.Read(func(fd uintptr) bool { return readable(int(fd)) }); err != nil {
		return nil, errors.Join(ctx.Err(), err, p.Release())
	}
	return p.Wait()
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, syscall.EINTR) {
			return err == nil && n > 0
		}
	}
}
