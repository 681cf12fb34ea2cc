package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxSocketPath is what containerd allows; Linux would allow three more.
	maxSocketPath = 104
	// probeTimeout bounds the look for a daemon behind a socket that is there.
	probeTimeout = 2 * time.Second
	// lockTimeout bounds the wait for another daemon that is doing so.
	lockTimeout = 5 * time.Second
	lockPause   = 5 * time.Millisecond
)

// SocketConfig describes a socket to listen on.
type SocketConfig struct {
	// Path is absolute. Its directory is made 0711 if it is not there.
	Path string
	// UID and GID own the socket, which is 0660.
	UID, GID int
}

// Listen makes a unix socket. A socket that is there is replaced when nobody
// answers on it; otherwise the error is a FailedPrecondition. The socket
// appears with its owner and mode. Closing the listener removes it, unless
// another process has replaced it by then.
func Listen(cfg SocketConfig) (net.Listener, error) {
	l, err := listen(cfg)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Path, err)
	}
	return l, nil
}

func listen(cfg SocketConfig) (_ net.Listener, retErr error) {
	dir := filepath.Dir(cfg.Path)
	temp := filepath.Join(dir, "."+strconv.Itoa(os.Getpid()))
	switch {
	case !filepath.IsAbs(cfg.Path):
		return nil, fmt.Errorf("path is not absolute: %w", errdefs.ErrInvalidArgument)
	case max(len(cfg.Path), len(temp)) > maxSocketPath:
		return nil, fmt.Errorf("path is longer than %d bytes: %w", maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	if err := vacant(cfg.Path); err != nil {
		return nil, err
	}
	// Bound under another name and renamed when it is as it shall be: nobody
	// can connect to it before.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, l.Close(), os.RemoveAll(temp))
		}
	}()
	if err := os.Chown(temp, cfg.UID, cfg.GID); err != nil {
		return nil, err
	}
	if err := os.Chmod(temp, 0o660); err != nil {
		return nil, err
	}
	info, err := os.Lstat(temp)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(temp, cfg.Path); err != nil {
		return nil, err
	}
	return &socket{UnixListener: l, path: cfg.Path, file: info}, nil
}

// lockDir keeps other daemons that start from looking at the same socket at the
// same time.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockPause) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // a directory open for reading
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
	}
}

// vacant says whether path may be taken: it is free, or a socket nobody
// listens on.
func vacant(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is a file that is not a socket; move it away: %w", errdefs.ErrFailedPrecondition)
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		defer func() { _ = conn.Close() }() // nothing was written
		return fmt.Errorf("%s serves this address; stop it or choose another address: %w",
			peerOf(conn), errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("cannot tell whether the socket is in use: %w", err)
}

// socket is a listener that was renamed after it was bound.
type socket struct {
	*net.UnixListener
	path string
	file os.FileInfo
}

func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

func (s *socket) Close() error {
	if info, err := os.Lstat(s.path); err == nil && os.SameFile(info, s.file) {
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, s.UnixListener.Close())
		}
	}
	return s.UnixListener.Close()
}

// peerOf names the process that listens at the other end.
func peerOf(conn net.Conn) string {
	const nobody = "another process"
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nobody
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nobody
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil || cred.Pid == 0 {
		return nobody
	}
	return fmt.Sprintf("process %d", cred.Pid)
}
