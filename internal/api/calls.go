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
	"/containerd.services.events.v1.Events/Subscribe":    true,
	"/containerd.services.streaming.v1.Streaming/Stream": true,
	"/grpc.health.v1.Health/Watch":                       true,
}

// callCount counts the calls in progress, but for those that wait, so that a
// server can stop between calls.
type callCount struct {
	mu       sync.Mutex
	calls    int  // guarded by mu
	draining bool // guarded by mu; no call begins any more
	// idle is closed when draining and calls is 0.
	idle chan struct{}
}

func newCallCount() *callCount { return &callCount{idle: make(chan struct{})} }

var errStopping = status.Error(codes.Unavailable, "the daemon is stopping; try again when it is back")

// begin notes a call, or refuses it. The caller calls end when the call ends.
func (c *callCount) begin(method string) (end func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return nil, errStopping
	}
	if waiting[method] {
		return func() {}, nil
	}
	c.calls++
	return c.end, nil
}

func (c *callCount) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.draining && c.calls == 0 {
		close(c.idle)
	}
}

// drain refuses calls from here on and waits until none is in progress, or
// until ctx ends.
func (c *callCount) drain(ctx context.Context) {
	c.mu.Lock()
	if !c.draining {
		c.draining = true
		if c.calls == 0 {
			close(c.idle)
		}
	}
	c.mu.Unlock()
	select {
	case <-c.idle:
	case <-ctx.Done():
	}
}

func (c *callCount) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	end, err := c.begin(info.FullMethod)
	if err != nil {
		return nil, err
	}
	defer end()
	return handler(ctx, req)
}

func (c *callCount) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	end, err := c.begin(info.FullMethod)
	if err != nil {
		return err
	}
	defer end()
	return handler(srv, stream)
}
