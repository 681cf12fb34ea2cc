package shim

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
)

// connections are those of a ttrpc server, which itself, when it shuts down,
// cuts one whose last answer is still on its way. They are its handshaker.
type connections struct {
	// check is asked first of a new connection.
	check ttrpc.Handshaker

	mu   sync.Mutex
	open map[*conn]struct{} // guarded by mu
}

// Handshake implements ttrpc.Handshaker.
func (c *connections) Handshake(ctx context.Context, raw net.Conn) (net.Conn, any, error) {
	checked, peer, err := c.check.Handshake(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	counted := &conn{Conn: checked, owner: c, requests: frames{kind: requestFrame}, responses: frames{kind: responseFrame}}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*conn]struct{}{}
	}
	c.open[counted] = struct{}{}
	return counted, peer, nil
}

func (c *connections) forget(gone *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, gone)
}

// farewell is how long clients get to leave once they have their answers: one
// whose connection ends at that moment may not see the answer.
const farewell = 100 * time.Millisecond

// count is the number of connections, and of requests that were read and whose
// answers were not written.
func (c *connections) count() (open int, unanswered int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		// In this order: a request that comes in between counts.
		answered := conn.responses.n.Load()
		unanswered += max(0, conn.requests.n.Load()-answered)
	}
	return len(c.open), unanswered
}

// drain waits until the clients have left, or have had time for it and every
// request is answered; for at most as long as ctx lasts.
func (c *connections) drain(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(farewell); ; {
		open, unanswered := c.count()
		if open == 0 || unanswered == 0 && time.Now().After(late) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if unanswered == 0 {
				return nil
			}
			return fmt.Errorf("%d calls have no answer yet: %w", unanswered, ctx.Err())
		}
	}
}

const (
	enterPause = 50 * time.Microsecond
	enterTries = 2000
)

// awaitEntered returns once the server has entered in its table of calls every
// request that it has read, or after a tenth of a second. To be called before a
// call is answered: ttrpc starts a call and enters it then, and an entry that comes
// after the answer, which is to take it out, stays as long as the connection: it
// was one call of a hundred.
func (c *connections) awaitEntered() {
	for range enterTries {
		if c.entered() {
			return
		}
		time.Sleep(enterPause)
	}
}

func (c *connections) entered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		if conn.entered.Load() < conn.requests.n.Load() {
			return false
		}
	}
	return true
}

// conn counts what passes. ttrpc reads in one goroutine and writes in another.
type conn struct {
	net.Conn
	owner     *connections
	requests  frames // Read's
	responses frames // Write's
	// entered is how many of the requests are in ttrpc's table of calls: those that
	// were whole when it asked for more, because its reader is one goroutine.
	entered atomic.Int64
}

func (c *conn) Read(p []byte) (int, error) {
	c.entered.Store(c.requests.n.Load())
	n, err := c.Conn.Read(p)
	c.requests.add(p[:n])
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.responses.add(p[:n])
	return n, err
}

func (c *conn) Close() error {
	c.owner.forget(c)
	return c.Conn.Close()
}

// A frame of ttrpc has a head of ten bytes: the length of what follows it, the
// stream, the kind and flags.
const (
	headSize      = 10
	kindAt        = 8
	requestFrame  = 1
	responseFrame = 2
)

// frames counts the whole frames of one kind in a stream of bytes.
type frames struct {
	kind byte
	n    atomic.Int64
	head [headSize]byte
	have int // bytes of head
	rest int // bytes that are still to follow it
}

func (f *frames) add(p []byte) {
	for len(p) > 0 {
		if f.have < headSize {
			n := copy(f.head[f.have:], p)
			f.have, p = f.have+n, p[n:]
			if f.have < headSize {
				return
			}
			f.rest = int(binary.BigEndian.Uint32(f.head[:]))
		}
		n := min(f.rest, len(p))
		f.rest, p = f.rest-n, p[n:]
		if f.rest == 0 {
			f.have = 0
			if f.head[kindAt] == f.kind {
				f.n.Add(1)
			}
		}
	}
}
