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
	waiting map[uint64]chan answer // guarded by mu
}

// answer is the guard's to a status or an open.
type answer struct {
	ws unix.WaitStatus
	ok bool
	fd int // the receiver's
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
	c := &Client{conn: conn, log: log, lost: make(chan struct{}), waiting: map[uint64]chan answer{}}
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
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.log.Warn("the guard is gone; this shim goes on without", "error", err)
			}
			return
		}
		if !c.deliver(fields, fd) {
			closeFD(fd)
		}
	}
}

// deliver returns true when somebody has taken fd over.
func (c *Client) deliver(fields []string, fd int) bool {
	a := answer{fd: noFile}
	switch {
	case fields[0] == "ended" && len(fields) == 3:
		ws, err := strconv.ParseUint(fields[2], 10, 32)
		a.ws, a.ok = unix.WaitStatus(ws), err == nil
	case fields[0] == "opened" && len(fields) == 2:
		a.fd, a.ok = fd, fd != noFile
	default:
		return false
	}
	seq, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.waiting[seq]
	if ch == nil {
		return false
	}
	delete(c.waiting, seq)
	ch <- a // it has room
	return a.fd != noFile
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
	a, err := c.ask(func(seq string) error { return c.tell(noFile, "status", seq, strconv.Itoa(pid)) })
	return a.ws, a.ok, err
}

// OpenFIFO has the guard open a FIFO for reading, of which fifo is an O_PATH
// descriptor, and keep that under a name: who waits to write to the FIFO is let
// go, and has its reader also when this process is killed. The result, not
// blocking, is the caller's; ok is false when there is no guard.
func (c *Client) OpenFIFO(name string, fifo int) (fd int, ok bool, err error) {
	a, err := c.ask(func(seq string) error { return c.tell(fifo, "open", name, seq) })
	return a.fd, a.ok, err
}

// ask sends a question with a number and waits for its answer.
func (c *Client) ask(send func(seq string) error) (answer, error) {
	none := answer{fd: noFile}
	if c.isLost() {
		return none, nil
	}
	ch := make(chan answer, 1)
	c.mu.Lock()
	c.seq++
	seq := c.seq
	c.waiting[seq] = ch
	c.mu.Unlock()
	if err := send(strconv.FormatUint(seq, 10)); err != nil {
		c.forget(seq, ch)
		return none, err
	}
	timeout := time.NewTimer(sendTimeout)
	defer timeout.Stop()
	select {
	case got := <-ch:
		return got, nil
	case <-c.lost:
		c.forget(seq, ch)
		return none, nil
	case <-timeout.C:
		c.forget(seq, ch)
		return none, fmt.Errorf("no answer from the guard within %s", sendTimeout)
	}
}

// forget gives a question up, with the answer that may have come all the same.
func (c *Client) forget(seq uint64, ch chan answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, seq)
	select {
	case a := <-ch:
		closeFD(a.fd)
	default:
	}
}

// Close ends the connection. The guard then waits for the shim's end.
func (c *Client) Close() error {
	err := c.conn.Close()
	c.wg.Wait()
	return err
}
