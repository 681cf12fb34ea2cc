package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

// sendTimeout is how long a server that stops sends the answers of calls that
// have ended, to clients that may not read them.
const sendTimeout = time.Second

// Services are what a daemon offers. Every field must be set.
type Services struct {
	Containers    containersapi.ContainersServer
	Content       contentapi.ContentServer
	Diff          diffapi.DiffServer
	Events        eventsapi.EventsServer
	Images        imagesapi.ImagesServer
	Introspection introspectionapi.IntrospectionServer
	Leases        leasesapi.LeasesServer
	Mounts        mountsapi.MountsServer
	Namespaces    namespacesapi.NamespacesServer
	Sandboxes     sandboxapi.StoreServer
	Sandboxers    sandboxapi.ControllerServer
	Snapshots     snapshotsapi.SnapshotsServer
	Streaming     streamingapi.StreamingServer
	Tasks         tasksapi.TasksServer
	Transfer      transferapi.TransferServer
	Version       versionapi.VersionServer
}

// register offers all services.
func (s Services) register(r grpc.ServiceRegistrar) {
	containersapi.RegisterContainersServer(r, s.Containers)
	contentapi.RegisterContentServer(r, s.Content)
	diffapi.RegisterDiffServer(r, s.Diff)
	eventsapi.RegisterEventsServer(r, s.Events)
	imagesapi.RegisterImagesServer(r, s.Images)
	introspectionapi.RegisterIntrospectionServer(r, s.Introspection)
	leasesapi.RegisterLeasesServer(r, s.Leases)
	mountsapi.RegisterMountsServer(r, s.Mounts)
	namespacesapi.RegisterNamespacesServer(r, s.Namespaces)
	sandboxapi.RegisterStoreServer(r, s.Sandboxes)
	sandboxapi.RegisterControllerServer(r, s.Sandboxers)
	snapshotsapi.RegisterSnapshotsServer(r, s.Snapshots)
	streamingapi.RegisterStreamingServer(r, s.Streaming)
	tasksapi.RegisterTasksServer(r, s.Tasks)
	transferapi.RegisterTransferServer(r, s.Transfer)
	versionapi.RegisterVersionServer(r, s.Version)
}

// Server is a gRPC server of all services and of the health service. A call
// that panics gets an Internal error, and the log the stack.
type Server struct {
	grpc  *grpc.Server
	calls *callCount
}

// NewServer makes a server. The caller ends it with Stop, whether or not it
// served.
func NewServer(s Services, log *slog.Logger) *Server {
	calls := newCallCount()
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(unaryErrors(log), calls.unary, namespaceUnary),
		grpc.ChainStreamInterceptor(streamErrors(log), calls.stream, namespaceStream),
	)
	s.register(srv)
	healthapi.RegisterHealthServer(srv, health.NewServer())
	return &Server{grpc: srv, calls: calls}
}

// Serve answers calls that come in through l until Stop. It closes l. Several
// listeners may be served at once.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Stop refuses new calls and lets those in progress end until ctx does; what is
// left then is cancelled, and at once those that only wait for something (the
// exit of a process, events, a client's stream). It returns when all have
// returned.
func (s *Server) Stop(ctx context.Context) {
	s.calls.stop()
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.grpc.GracefulStop() // ends with Stop at the latest
	}()
	select {
	case <-s.calls.idle.Done():
		// The answers are still to be sent.
		select {
		case <-graceful:
		case <-time.After(sendTimeout):
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	s.grpc.Stop()
	<-graceful
}

// NewTTRPCServer makes the server that shims send their events to. It takes
// connections of the daemon's own user and group only.
func NewTTRPCServer(events ttrpcevents.TTRPCEventsService, log *slog.Logger) (*ttrpc.Server, error) {
	srv, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()),
		ttrpc.WithUnaryServerInterceptor(ttrpcErrors(log)),
	)
	if err != nil {
		return nil, fmt.Errorf("make ttrpc server: %w", err)
	}
	ttrpcevents.RegisterTTRPCEventsService(srv, events)
	return srv, nil
}

// namespaceUnary puts the namespace of the call's metadata where the libraries
// look for it, and into what calls to others carry on.
func namespaceUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return handler(withNamespace(ctx), req)
}

func namespaceStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, &contextStream{ServerStream: stream, ctx: withNamespace(stream.Context())})
}

func withNamespace(ctx context.Context) context.Context {
	if ns, ok := namespaces.Namespace(ctx); ok {
		return namespaces.WithNamespace(ctx, ns)
	}
	return ctx
}

// contextStream is a stream with another context.
type contextStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // this is how a stream carries its context
}

func (s *contextStream) Context() context.Context { return s.ctx }
