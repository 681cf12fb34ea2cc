package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// lockTimeout is long enough for a predecessor that is about to end.
	lockTimeout = time.Second
	lockPause   = 20 * time.Millisecond
)

// dirLock keeps other processes out of a directory for as long as the process
// lives, however it ends: the file stays, the lock goes with its fd.
type dirLock struct {
	file *os.File
}

// lockDir makes the directory with the mode and locks the file "lock" in it. A
// directory that another process has locked is a FailedPrecondition that names
// the process.
func lockDir(what, dir string, mode os.FileMode) (*dirLock, error) {
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, fmt.Errorf("make %s directory: %w", what, err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		return nil, fmt.Errorf("set the mode of the %s directory: %w", what, err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s directory: %w", what, err)
	}
	if err := flock(f); err != nil {
		holder := lockHolder(path)
		if cerr := f.Close(); cerr != nil {
			return nil, cerr
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s directory %s is in use by %s: stop it, or choose another directory: %w",
				what, dir, holder, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// For people and for the error above; the lock does not depend on it.
	if err := writePid(f); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return &dirLock{file: f}, nil
}

func flock(f *os.File) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockPause) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		busy := errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR)
		if !busy || time.Now().After(deadline) {
			return err
		}
	}
}

func writePid(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// lockHolder names the process that wrote the lock file.
func lockHolder(path string) string {
	data, err := os.ReadFile(path)
	if err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			return fmt.Sprintf("process %d", pid)
		}
	}
	return "another process"
}

func (l *dirLock) unlock() error { return l.file.Close() }
