package cli

import (
	"context"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/streaming"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/typeurl/v2"
)

// transfer lets the daemon move an image, and shows how that goes.
// It is done under a lease of ours: the one that the daemon would make itself
// it cannot drop when the transfer is cancelled, and half an image would stay
// for a day.
func (s *session) transfer(ctx context.Context, src, dst any, v *progressView) error {
	lease := s.startLease(ctx)
	defer lease.drop()
	leased, err := lease.context(ctx)
	if err != nil {
		return err
	}
	streams := &watchedStreams{StreamCreator: streamproxy.NewStreamCreator(s.client.Conn()), ended: make(chan struct{})}
	err = proxy.NewTransferrer(s.client.Conn(), streams).Transfer(leased, src, dst, transfer.WithProgress(v.update))
	if err == nil {
		// The daemon has closed the stream, and what it sent last is on its way.
		select {
		case <-streams.ended:
		case <-time.After(5 * time.Second):
		}
	}
	// A blob that came damaged would be taken up again by the next try.
	lease.purge = err != nil
	return err
}

// watchedStreams says when the progress of a transfer has come to its end.
type watchedStreams struct {
	streaming.StreamCreator
	ended chan struct{}
}

func (w *watchedStreams) Create(ctx context.Context, id string) (streaming.Stream, error) {
	stream, err := w.StreamCreator.Create(ctx, id)
	if err == nil && strings.HasPrefix(id, "progress") {
		stream = &watchedStream{stream, w.ended}
	}
	return stream, err
}

// watchedStream is read by one goroutine, until the first error.
type watchedStream struct {
	streaming.Stream
	ended chan struct{}
}

func (w *watchedStream) Recv() (typeurl.Any, error) {
	a, err := w.Stream.Recv()
	if err != nil {
		close(w.ended)
	}
	return a, err
}
