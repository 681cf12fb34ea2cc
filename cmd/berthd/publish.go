package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// maxEvent bounds an event on standard input.
	maxEvent       = 1 << 20
	publishTimeout = 10 * time.Second
)

// publishCommand is what shims execute that do not send events themselves: it
// sends the event on standard input, a protobuf Any, to the daemon that
// configure finds.
func publishCommand(configure func(context.Context, *cli.Command) (*config, error)) *cli.Command {
	return &cli.Command{
		Name:   "publish",
		Usage:  "send an event to the daemon at --address",
		Hidden: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "topic", Usage: "the event's `TOPIC`", Required: true},
			&cli.StringFlag{Name: "namespace", Usage: "the event's `NAMESPACE`", Required: true},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			cfg, err := configure(ctx, c.Root())
			if err != nil {
				return usageError{err}
			}
			return publish(ctx, cfg, c.String("namespace"), c.String("topic"), os.Stdin)
		},
	}
}

func publish(ctx context.Context, cfg *config, ns, topic string, input io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(input, maxEvent+1))
	if err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	if len(data) > maxEvent {
		return fmt.Errorf("event is larger than %d bytes", maxEvent)
	}
	var event anypb.Any
	if err := proto.Unmarshal(data, &event); err != nil {
		return fmt.Errorf("event on standard input is not a protobuf Any: %w", err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, ns), publishTimeout)
	defer cancel()
	address := cfg.address()
	c, err := client.New(address, client.WithTimeout(publishTimeout))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	defer func() { _ = c.Close() }() // the answer is there
	conn, ok := c.Conn().(grpc.ClientConnInterface)
	if !ok {
		return fmt.Errorf("connect to %s: not a gRPC connection", address)
	}
	if _, err := eventsapi.NewEventsClient(conn).Publish(ctx, &eventsapi.PublishRequest{Topic: topic, Event: &event}); err != nil {
		return fmt.Errorf("publish %s at %s: %w", topic, address, errgrpc.ToNative(err))
	}
	return nil
}
