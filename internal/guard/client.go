package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Client is the shim's side. A guard that dies does not take the shim along:
// from then on Keep, Claim and Reap do nothing and Status says so.
type Client struct {
	conn *net.UnixConn
	log  *slog.Logger
	lost chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	seq     uint64                 // guarded by mu
	waiting map[uint64]chan ending // guarded by mu
}

type ending struct {
	ws unix.WaitStatus
	ok bool
}

// Connect takes over the socket that the shim inherited and returns what a
// predecessor left with the guard, by name. The files belong to the caller.
func Connect(ctx context.Context, f *os.File, log *slog.Logger) (*Client, map[string]*os.File, error) {
	conn, err := fileConn(f)
	if err != nil {
		return nil, nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(end); err != nil {
			conn.Close()
			return nil, nil, err
		}
	}
	kept := map[string]*os.File{}
	for {
		fields, fd, err := receive(conn)
		if err != nil {
			closeAll(kept)
			conn.Close()
			return nil, nil, fmt.Errorf("take over from the guard: %w", err)
		}
		if fields[0] == "all" {
			break
		}
		if fields[0] == "kept" && len(fields) == 2 && fd != noFile {
			kept[fields[1]] = os.NewFile(uintptr(fd), fields[1])
		} else {
			closeFD(fd)
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		closeAll(kept)
		conn.Close()
		return nil, nil, err
	}
	c := &Client{conn: conn, log: log, lost: make(chan struct{}), waiting: map[uint64]chan ending{}}
	c.wg.Add(1)
	go c.read()
	return c, kept, nil
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (c *Client) read() {
	defer c.wg.Done()
	defer close(c.lost)
	for {
		fields, fd, err := receive(c.conn)
		closeFD(fd)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.log.Warn("the guard is gone; this shim goes on without", "error", err)
			}
			return
		}
		if fields[0] != "ended" || len(fields) != 3 {
			continue
		}
		seq, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			continue
		}
		ws, err := strconv.ParseUint(fields[2], 10, 32)
		c.mu.Lock()
		ch := c.waiting[seq]
		delete(c.waiting, seq)
		c.mu.Unlock()
		if ch != nil {
			ch <- ending{unix.WaitStatus(ws), err == nil}
		}
	}
}

// Lost is closed when the guard is gone.
func (c *Client) Lost() <-chan struct{} { return c.lost }

func (c *Client) isLost() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}

func (c *Client) tell(fd int, fields ...string) error {
	if c.isLost() {
		return nil
	}
	err := send(c.conn, fd, fields...)
	if err != nil && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || c.isLost()) {
		return nil
	}
	return err
}

// Keep gives the guard a duplicate of f under a name; an earlier one of that
// name is dropped. f stays the caller's.
func (c *Client) Keep(name string, f *os.File) error {
	// Not f.Fd(): that would make the file blocking for its owner.
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = c.tell(int(fd), "keep", name) })
	return errors.Join(err, serr)
}

// Drop tells the guard to close what it holds under the name.
func (c *Client) Drop(name string) {
	if err := c.tell(noFile, "drop", name); err != nil {
		c.log.Warn("tell the guard to drop an fd", "name", name, "error", err)
	}
}

// Claim tells the guard not to reap the process on its own.
func (c *Client) Claim(pid int) error { return c.tell(noFile, "claim", strconv.Itoa(pid)) }

// Adopted says that every process of ours that is the guard's child has been
// claimed: the guard reaps the others.
func (c *Client) Adopted() error { return c.tell(noFile, "adopted") }

// Serving says that the group's socket is served.
func (c *Client) Serving() error { return c.tell(noFile, "serving") }

// Bye says that this shim ends because it has nothing left to do.
func (c *Client) Bye() error { return c.tell(noFile, "bye") }

// Reap has the guard reap its ended child.
func (c *Client) Reap(pid int) error { return c.tell(noFile, "reap", strconv.Itoa(pid)) }

// Status asks how the guard's child ended; it stays a zombie. ok is false when
// it is not the guard's child or there is no guard.
func (c *Client) Status(pid int) (ws unix.WaitStatus, ok bool, err error) {
	if c.isLost() {
		return 0, false, nil
	}
	ch := make(chan ending, 1)
	c.mu.Lock()
	c.seq++
	seq := c.seq
	c.waiting[seq] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, seq)
		c.mu.Unlock()
	}()
	if err := c.tell(noFile, "status", strconv.FormatUint(seq, 10), strconv.Itoa(pid)); err != nil {
		return 0, false, err
	}
	timeout := time.NewTimer(sendTimeout)
	defer timeout.Stop()
	select {
	case got := <-ch:
		return got.ws, got.ok, nil
	case <-c.lost:
		return 0, false, nil
	case <-timeout.C:
		return 0, false, fmt.Errorf("no answer from the guard within %s", sendTimeout)
	}
}

// Close ends the connection. The guard then waits for the shim's end.
func (c *Client) Close() error {
	err := c.conn.Close()
	c.wg.Wait()
	return err
}
