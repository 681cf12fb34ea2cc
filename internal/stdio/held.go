package stdio

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// holder gives files to the keeper.
type holder struct {
	prefix string
	keeper Keeper
	log    *slog.Logger
}

// heldFile is an open file of ours and, where there is a keeper, its duplicate
// there. nil is a file that is not there.
type heldFile struct {
	file *os.File
	conn syscall.RawConn
	name string
	from Keeper
	once sync.Once
}

// hold takes f over and has it kept.
func (h holder) hold(name string, f *os.File) *heldFile {
	held := h.adopted(name, f)
	if h.keeper == nil {
		return held
	}
	if err := h.keeper.Keep(held.name, f); err != nil {
		h.log.Warn("a stream will not survive a restart of the shim", "stream", held.name, "error", err)
	}
	return held
}

// adopted takes over a file that the keeper has already.
func (h holder) adopted(name string, f *os.File) *heldFile {
	// SyscallConn fails for a nil file only.
	conn, _ := f.SyscallConn()
	return &heldFile{file: f, conn: conn, name: h.prefix + name, from: h.keeper}
}

// close ends the file here and at the keeper. It may be called again.
func (h *heldFile) close() {
	if h == nil {
		return
	}
	h.once.Do(func() {
		if h.from != nil {
			h.from.Drop(h.name)
		}
		_ = h.file.Close()
	})
}

// pollable wraps a descriptor, which it takes over, so that Go's poller waits
// for it. Regular files are left out by the poller itself.
func pollable(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s non-blocking: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

type direction bool

const (
	containerReads  direction = false
	containerWrites direction = true
)

// containerPipe makes a pipe. The container's end is blocking, as programs
// expect, ours is not.
func containerPipe(uid, gid int, dir direction) (theirs, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	t, o := fds[0], fds[1]
	if dir == containerWrites {
		t, o = fds[1], fds[0]
	}
	theirs = os.NewFile(uintptr(t), "container's pipe")
	if uid != 0 || gid != 0 {
		if err := unix.Fchown(t, uid, gid); err != nil {
			_ = theirs.Close()
			_ = unix.Close(o)
			return nil, nil, fmt.Errorf("give a pipe to user %d, group %d: %w", uid, gid, err)
		}
	}
	ours, err = pollable(o, "pipe")
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return theirs, ours, nil
}

// reopen opens the file behind a descriptor once more. It needs no path, so it
// works for a file that was renamed or removed, and cannot reach another one.
func reopen(fd uintptr, flags int, name string) (*os.File, error) {
	path := procPath(fd)
	for {
		n, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(n), name), nil
	}
}

func procPath(fd uintptr) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// withFd runs f with the descriptor of an open file.
func withFd(conn syscall.RawConn, f func(fd uintptr) error) error {
	var err error
	if cerr := conn.Control(func(fd uintptr) { err = f(fd) }); cerr != nil {
		return os.ErrClosed
	}
	return err
}
