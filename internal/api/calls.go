package api

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// waiting are the calls that last as long as their caller likes.
var waiting = map[string]bool{
	"/containerd.services.tasks.v1.Tasks/Wait":           true,
	"/containerd.services.sandbox.v1.Controller/Wait":    true,
	"/containerd.services.events.v1.Events/Subscribe":    true,
	"/containerd.services.streaming.v1.Streaming/Stream": true,
	"/grpc.health.v1.Health/Watch":                       true,
}

// callCount knows the calls in progress, so that a server can stop between
// calls: when only those are left that wait, they are told to end. Not before:
// a call in progress may use a stream.
type callCount struct {
	// idle ends when the server stops and no call but those that wait is in
	// progress.
	idle   context.Context //nolint:containedctx // not a call's: the server's life
	cancel context.CancelFunc

	mu       sync.Mutex
	calls    int  // without those that wait; guarded by mu
	stopping bool // no call begins any more; guarded by mu
}

func newCallCount() *callCount {
	c := &callCount{}
	c.idle, c.cancel = context.WithCancel(context.Background())
	return c
}

var errStopping = status.Error(codes.Unavailable, "the daemon is stopping; try again when it is back")

// begin notes a call, or refuses it. The call gets the context that is
// returned; the caller calls end when the call has ended.
func (c *callCount) begin(ctx context.Context, method string) (_ context.Context, end func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return nil, nil, errStopping
	}
	if !waiting[method] {
		c.calls++
		return ctx, c.end, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	forget := context.AfterFunc(c.idle, cancel)
	return ctx, func() { forget(); cancel() }, nil
}

func (c *callCount) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.stopping && c.calls == 0 {
		c.cancel()
	}
}

// stop refuses calls from here on. It does not wait for those in progress: see
// idle.
func (c *callCount) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	if c.calls == 0 {
		c.cancel()
	}
}

func (c *callCount) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, end, err := c.begin(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer end()
	resp, err := handler(ctx, req)
	return resp, c.reason(info.FullMethod, err)
}

func (c *callCount) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, end, err := c.begin(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	defer end()
	return c.reason(info.FullMethod, handler(srv, &contextStream{ServerStream: stream, ctx: ctx}))
}

// reason is the error of a call that has ended: its own, but for one that was
// waiting when the server stopped. Its client is to wait again, not to take it
// for cancelled.
func (c *callCount) reason(method string, err error) error {
	if err != nil && waiting[method] && c.idle.Err() != nil {
		return errStopping
	}
	return err
}
