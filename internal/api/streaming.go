package api

import (
	"context"
	"errors"
	"io"
	"sync"

	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// StreamTable holds open streams by name for other services.
type StreamTable interface {
	streaming.StreamManager
	// Unregister takes that very stream out of the table, if it is there.
	Unregister(ctx context.Context, name string, stream streaming.Stream)
}

// Streaming is containerd.services.streaming.v1: a client opens a stream under
// a name and uses the name in other requests, those of Transfer.
type Streaming struct {
	streamingapi.UnimplementedStreamingServer
	table StreamTable
}

var _ streamingapi.StreamingServer = (*Streaming)(nil)

// NewStreaming makes the service.
func NewStreaming(table StreamTable) *Streaming { return &Streaming{table: table} }

// Stream takes the name from the first message, answers it once the stream can
// be found, and ends when the stream is closed by the service that uses it or
// when the client goes away.
func (s *Streaming) Stream(conn streamingapi.Streaming_StreamServer) error {
	first, err := conn.Recv()
	if err != nil {
		return err
	}
	var init streamingapi.StreamInit
	if err := typeurl.UnmarshalTo(first, &init); err != nil {
		return storeError(err)
	}
	ack, err := anypb.New(&emptypb.Empty{})
	if err != nil {
		return err
	}

	ctx := conn.Context()
	st := &clientStream{conn: conn, closed: make(chan struct{})}
	if err := s.table.Register(ctx, init.ID, st); err != nil {
		return storeError(err)
	}
	// The connection is not valid after this method; who still has the stream
	// gets errors from it.
	defer s.table.Unregister(ctx, init.ID, st)

	if err := st.send(ack); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-st.closed:
	}
	return nil
}

// clientStream is a client's connection as a stream. Several goroutines may
// send at once, one may receive.
type clientStream struct {
	conn streamingapi.Streaming_StreamServer
	// sending is held for the time of a send: the connection takes one at a
	// time.
	sending sync.Mutex
	closed  chan struct{}
	once    sync.Once
}

func (c *clientStream) Send(a typeurl.Any) error { return c.send(typeurl.MarshalProto(a)) }

func (c *clientStream) send(a *anypb.Any) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	return nativeError(c.conn.Send(a))
}

func (c *clientStream) Recv() (typeurl.Any, error) {
	a, err := c.conn.Recv()
	if err != nil {
		return nil, nativeError(err)
	}
	return a, nil
}

// Close ends the client's stream. It may be called more than once.
func (c *clientStream) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// nativeError keeps io.EOF, which says that the client has no more to send.
func nativeError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return errgrpc.ToNative(err)
}
