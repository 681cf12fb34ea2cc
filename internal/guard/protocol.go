// Package guard keeps a group of containers through the death of its shim.
//
// The guard is the parent of the shim, and a child subreaper, so it becomes the parent of
// the containers when the shim dies. It does almost nothing, and so does
// not fail: it holds duplicates of the fds that must outlive a shim (the listening
// socket, pipe ends, pty masters), starts the shim again when it dies, and
// reaps orphans only after the new shim has said which processes are its own. Until
// then the zombies themselves keep pid, start time and exact exit status.
//
// Guard and shim talk over a SOCK_SEQPACKET pair that the shim inherits. A
// message is one packet of text, fields separated by a blank, with at most one
// fd:
//
//	guard                                   shim
//	  kept NAME +fd   ────────────────────▶   what a predecessor left
//	  all             ────────────────────▶   end of the list
//	                  ◀────────────────────   keep NAME +fd
//	                  ◀────────────────────   drop NAME
//	                  ◀────────────────────   open NAME N +fd   a FIFO: open it for reading, keep that
//	  opened N +fd    ────────────────────▶   without an fd: it could not
//	                  ◀────────────────────   claim PID      do not reap it yourself
//	                  ◀────────────────────   adopted        all claims are made: reap the rest
//	                  ◀────────────────────   serving        the socket is served
//	                  ◀────────────────────   status N PID   how did it end?
//	  ended N WS      ────────────────────▶   WS: wait status, or "none"
//	                  ◀────────────────────   reap PID       its exit is stored: reap it
//	                  ◀────────────────────   bye            no containers are left: do not start me again
package guard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a packet; names hold a container id and an exec id of at
// most 76 characters each.
const maxMessage = 1024

// sendTimeout bounds a send to a peer that does not read.
const sendTimeout = 5 * time.Second

// socketPair makes the connection: one end as a conn, the other as a file for
// the shim to inherit.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	peer := os.NewFile(uintptr(fds[1]), "guard-peer")
	conn, err := fileConn(os.NewFile(uintptr(fds[0]), "guard"))
	if err != nil {
		peer.Close()
		return nil, nil, err
	}
	return conn, peer, nil
}

// fileConn takes f over.
func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("guard socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("guard socket: not a unix socket")
	}
	return u, nil
}

// noFile is the fd of a message that carries none.
const noFile = -1

func send(c *net.UnixConn, fd int, fields ...string) error {
	msg := strings.Join(fields, " ")
	if len(msg) > maxMessage {
		return fmt.Errorf("guard message of %d bytes", len(msg))
	}
	if err := c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	var rights []byte
	if fd != noFile {
		rights = unix.UnixRights(fd)
	}
	_, _, err := c.WriteMsgUnix([]byte(msg), rights, nil)
	return err
}

// receive returns the next message; its fd, if any, belongs to the caller. It
// is a bare number and not an *os.File: that would put a pipe into the
// poller, and wake the guard at every byte that the shim moves.
func receive(c *net.UnixConn) (fields []string, fd int, err error) {
	buf := make([]byte, maxMessage+1)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, noFile, err
	}
	fds := parseRights(oob[:oobn])
	bad := n == 0 || n > maxMessage || len(fds) > 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0
	if bad {
		for _, fd := range fds {
			unix.Close(fd)
		}
		if n == 0 {
			return nil, noFile, net.ErrClosed
		}
		return nil, noFile, errors.New("guard message out of bounds")
	}
	fd = noFile
	if len(fds) == 1 {
		fd = fds[0]
	}
	return strings.Split(string(buf[:n]), " "), fd, nil
}

func parseRights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeFD(fd int) {
	if fd != noFile {
		unix.Close(fd)
	}
}
