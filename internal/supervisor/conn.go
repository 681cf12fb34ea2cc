package supervisor

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
)

// conn is one connection to a shim. It serves any number of calls at a time.
type conn struct {
	// invoke calls a method of the Task service in the given version. The
	// messages of version 3 serve both: on the wire version 2 is the same.
	invoke func(ctx context.Context, version int32, method string, req, resp proto.Message) error
	// call is the same for any service.
	call func(ctx context.Context, service, method string, req, resp proto.Message) error
	// closed is closed when the connection has broken or was closed.
	closed <-chan struct{}
	// sent changes when the shim may have had a byte of a call.
	sent func() int64
	// close ends the connection and every call on it. It does not wait.
	close func()
}

// connect makes one attempt to reach a shim. The caller closes the connection.
func connect(ctx context.Context, r *bootapi.BootstrapResult, writeLimit time.Duration) (*conn, error) {
	addr, err := parseAddress(r.Protocol, r.Address)
	if err != nil {
		return nil, err
	}
	raw, err := addr.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: raw, limit: writeLimit, closed: make(chan struct{})}
	if r.Protocol == protocolGRPC {
		return newGRPC(c)
	}
	return newTTRPC(c), nil
}

func taskMethod(version int32) string {
	if version == 2 {
		return "containerd.task.v2.Task"
	}
	return "containerd.task.v3.Task"
}

// invokeBy is invoke over call.
func invokeBy(call func(context.Context, string, string, proto.Message, proto.Message) error) func(context.Context, int32, string, proto.Message, proto.Message) error {
	return func(ctx context.Context, version int32, method string, req, resp proto.Message) error {
		return call(ctx, taskMethod(version), method, req, resp)
	}
}

func newTTRPC(c *boundedConn) *conn {
	client := ttrpc.NewClient(c)
	call := func(ctx context.Context, service, method string, req, resp proto.Message) error {
		return client.Call(ctx, service, method, req, resp)
	}
	return &conn{
		invoke: invokeBy(call), call: call,
		closed: c.closed, sent: c.sent.Load,
		close: func() { client.Close() },
	}
}

// newGRPC runs gRPC over the one connection: what breaks it is to be noticed
// here, not repaired behind our back.
func newGRPC(c *boundedConn) (*conn, error) {
	var once sync.Once
	dial := func(context.Context, string) (net.Conn, error) {
		err := errors.New("the connection to the shim was closed")
		var nc net.Conn
		once.Do(func() { nc, err = c, nil })
		return nc, err
	}
	client, err := grpc.NewClient("passthrough:///shim",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableRetry())
	if err != nil {
		c.Close()
		return nil, err
	}
	client.Connect()
	call := func(ctx context.Context, service, method string, req, resp proto.Message) error {
		return client.Invoke(ctx, "/"+service+"/"+method, req, resp)
	}
	return &conn{
		invoke: invokeBy(call), call: call,
		closed: c.closed,
		// Another goroutine writes, perhaps still when a call has failed: who can
		// say what was sent.
		sent:  func() int64 { return c.sent.Add(1) },
		close: func() { client.Close(); c.Close() },
	}, nil
}

// broken says that err of a call is about the connection and not the shim's
// answer.
func (c *conn) broken(err error) bool {
	st, answered := status.FromError(err)
	if !answered {
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	// With gRPC the library makes a status of it.
	return st.Code() == codes.Unavailable && c.isClosed()
}

func (c *conn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// boundedConn closes itself when a write does not get through in time. The
// other side does not read any more then, and a lock is held above while a
// write lasts: without the bound, calls would wait for it beyond their
// deadlines.
type boundedConn struct {
	net.Conn
	limit  time.Duration
	once   sync.Once
	closed chan struct{}
	sent   atomic.Int64
}

func (c *boundedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	if err != nil {
		c.Close() // half a message may be out: nothing can follow it
	}
	return n, err
}

func (c *boundedConn) Close() error {
	var err error
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}
