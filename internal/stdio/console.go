package stdio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// socketPathMax is what fits into a sockaddr_un, with room for a runtime
	// that appends a NUL byte.
	socketPathMax = 100
	// consoleTimeout bounds the wait for the master. The runtime has sent it
	// before it returned.
	consoleTimeout = 10 * time.Second
)

// consoleSocket is where the runtime sends the master of the pty that it made.
type consoleSocket struct {
	dir  string // ours alone, 0700
	path string
	l    *net.UnixListener
}

// listenConsole makes the socket in a new directory below base, or below the
// directory for temporary files where base is empty or too long.
func listenConsole(base string) (_ *consoleSocket, err error) {
	const pattern, name, digits = "pty", "s", 10
	if base == "" || len(base)+len(pattern)+digits+len(name)+2 > socketPathMax {
		base = os.TempDir()
	}
	dir, err := os.MkdirTemp(base, pattern)
	if err != nil {
		return nil, fmt.Errorf("make a directory for the console socket: %w", err)
	}
	c := &consoleSocket{dir: dir, path: filepath.Join(dir, name)}
	c.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: c.path, Net: "unix"})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the console: %w", err), c.close())
	}
	return c, nil
}

func (c *consoleSocket) close() error {
	if c.l != nil {
		_ = c.l.Close()
	}
	return os.RemoveAll(c.dir)
}

// receive waits for the runtime's connection and takes the master from it.
func (c *consoleSocket) receive(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	conn, err := c.accept(ctx)
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fd, err := receiveFd(conn)
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	if _, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("the runtime sent something that is not the master of a pty: %w (%w)", err, errdefs.ErrFailedPrecondition)
	}
	return pollable(fd, "pty")
}

func (c *consoleSocket) accept(ctx context.Context) (*net.UnixConn, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return c.l.AcceptUnix()
}

// fail tells a wait that was given up from other errors.
func (c *consoleSocket) fail(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("get the terminal from the runtime: %w", err)
}

// receiveFd takes one descriptor from one message.
func receiveFd(conn *net.UnixConn) (int, error) {
	text := make([]byte, unix.PathMax) // the runtime names the pty here
	oob := make([]byte, unix.CmsgSpace(4*8))
	// Go sets MSG_CMSG_CLOEXEC.
	_, oobn, flags, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return -1, fmt.Errorf("parse the runtime's message: %w", err)
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	if len(fds) == 1 && flags&unix.MSG_CTRUNC == 0 {
		return fds[0], nil
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return -1, fmt.Errorf("the runtime sent %d descriptors, want one: %w", len(fds), errdefs.ErrFailedPrecondition)
}
