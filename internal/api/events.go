package api

import (
	"context"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// EventExchange takes events and hands them to subscribers.
type EventExchange interface {
	events.Publisher
	events.Forwarder
	events.Subscriber
}

// Events is containerd.services.events.v1.
type Events struct {
	eventsapi.UnimplementedEventsServer
	exchange EventExchange
}

var _ eventsapi.EventsServer = (*Events)(nil)

// NewEvents makes the service.
func NewEvents(exchange EventExchange) *Events { return &Events{exchange: exchange} }

// Publish sends an event of the caller's namespace.
func (s *Events) Publish(ctx context.Context, r *eventsapi.PublishRequest) (*emptypb.Empty, error) {
	if _, err := namespaces.NamespaceRequired(ctx); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.Event == nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("publish event %q: event is missing: %w", r.Topic, errdefs.ErrInvalidArgument))
	}
	return done(s.exchange.Publish(ctx, r.Topic, r.Event))
}

// Forward sends an event on behalf of its publisher.
func (s *Events) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	return done(forward(ctx, s.exchange, r.Envelope))
}

// Subscribe streams the events that match any of the filters until the caller
// gives up or falls too far behind.
func (s *Events) Subscribe(r *eventsapi.SubscribeRequest, stream eventsapi.Events_SubscribeServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	ch, errs := s.exchange.Subscribe(ctx, r.Filters...)
	for {
		select {
		case env := <-ch:
			if err := stream.Send(envelopeToProto(env)); err != nil {
				return err
			}
		case err := <-errs:
			return errgrpc.ToGRPC(err)
		}
	}
}

// ShimEvents is containerd.services.events.ttrpc.v1, by which shims send their
// events.
type ShimEvents struct {
	forwarder events.Forwarder
}

var _ ttrpcevents.TTRPCEventsService = (*ShimEvents)(nil)

// NewShimEvents makes the service.
func NewShimEvents(forwarder events.Forwarder) *ShimEvents { return &ShimEvents{forwarder: forwarder} }

// Forward sends a shim's event.
func (s *ShimEvents) Forward(ctx context.Context, r *ttrpcevents.ForwardRequest) (*emptypb.Empty, error) {
	return done(forward(ctx, s.forwarder, r.Envelope))
}

func forward(ctx context.Context, to events.Forwarder, env *types.Envelope) error {
	if env.GetEvent() == nil {
		return fmt.Errorf("forward event %q: envelope without an event: %w", env.GetTopic(), errdefs.ErrInvalidArgument)
	}
	e := &events.Envelope{Namespace: env.Namespace, Topic: env.Topic, Event: env.Event}
	if env.Timestamp != nil {
		e.Timestamp = env.Timestamp.AsTime()
	}
	return to.Forward(ctx, e)
}

func envelopeToProto(env *events.Envelope) *types.Envelope {
	return &types.Envelope{
		Timestamp: timestamppb.New(env.Timestamp),
		Namespace: env.Namespace,
		Topic:     env.Topic,
		Event:     typeurl.MarshalProto(env.Event),
	}
}
