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
//	                  ◀────────────────────   claim PID      do not reap it yourself
//	                  ◀────────────────────   adopted        all claims are made: reap the rest
//	                  ◀────────────────────   serving        the socket is served
//	                  ◀────────────────────   collect N PID  reap it and tell its status
//	  collected N WS  ────────────────────▶   WS: wait status, or "none"
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

func send(c *net.UnixConn, f *os.File, fields ...string) error {
	msg := strings.Join(fields, " ")
	if len(msg) > maxMessage {
		return fmt.Errorf("guard message of %d bytes", len(msg))
	}
	if err := c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	if f == nil {
		_, _, err := c.WriteMsgUnix([]byte(msg), nil, nil)
		return err
	}
	// Not f.Fd(): that would make the file blocking for its owner.
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		_, _, serr = c.WriteMsgUnix([]byte(msg), unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, serr)
}

// receive returns the next message; its file, if any, belongs to the caller.
func receive(c *net.UnixConn) (fields []string, f *os.File, err error) {
	buf := make([]byte, maxMessage+1)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, err
	}
	var fds []int
	if oobn > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, nil, fmt.Errorf("guard message: %w", err)
		}
		for i := range msgs {
			got, err := unix.ParseUnixRights(&msgs[i])
			if err != nil {
				continue
			}
			fds = append(fds, got...)
		}
	}
	bad := n == 0 || n > maxMessage || len(fds) > 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0
	if bad {
		for _, fd := range fds {
			unix.Close(fd)
		}
		if n == 0 {
			return nil, nil, net.ErrClosed
		}
		return nil, nil, errors.New("guard message out of bounds")
	}
	fields = strings.Split(string(buf[:n]), " ")
	if len(fds) == 1 {
		name := fields[0]
		if len(fields) > 1 {
			name = fields[1]
		}
		// Pipes and sockets are shared with their other holders: the
		// nonblocking mode was set by whoever made them.
		f = os.NewFile(uintptr(fds[0]), name)
	}
	return fields, f, nil
}
