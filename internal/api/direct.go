package api

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Direct is a connection to services of the same process: a call runs in its
// caller's goroutine and context, with no transport between. Requests and
// answers are copied, so that neither side holds the other's. It has no
// streams; they answer Unimplemented.
type Direct struct {
	services    map[string]directService // fixed after NewDirect
	interceptor grpc.UnaryServerInterceptor
}

type directService struct {
	impl    any
	methods map[string]grpc.MethodHandler
}

var _ grpc.ClientConnInterface = (*Direct)(nil)

// NewDirect makes a connection to all services.
func NewDirect(s Services, log *slog.Logger) *Direct {
	d := &Direct{services: make(map[string]directService), interceptor: unaryErrors(log)}
	s.register(d)
	return d
}

// RegisterService adds a service; NewDirect calls it.
func (d *Direct) RegisterService(desc *grpc.ServiceDesc, impl any) {
	svc := directService{impl: impl, methods: make(map[string]grpc.MethodHandler, len(desc.Methods))}
	for _, m := range desc.Methods {
		svc.methods[m.MethodName] = m.Handler
	}
	d.services[desc.ServiceName] = svc
}

// Invoke calls a method ("/service/method").
func (d *Direct) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	svc := d.services[service]
	handler, ok := svc.methods[name]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	decode := func(into any) error { return copyMessage(into, args) }
	answer, err := handler(svc.impl, withNamespace(ctx), decode, d.interceptor)
	if err != nil {
		return err
	}
	return copyMessage(reply, answer)
}

// NewStream gives a stream that answers Unimplemented to its first read, which
// is how a gRPC server without the method does it: clients fall back to other
// calls.
func (d *Direct) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &noStream{ctx: ctx, method: method}, nil
}

// noStream is a stream that nobody answers.
type noStream struct {
	ctx    context.Context //nolint:containedctx // a stream has to give it back
	method string
}

func (s *noStream) Header() (metadata.MD, error) { return nil, nil }
func (s *noStream) Trailer() metadata.MD         { return nil }
func (s *noStream) CloseSend() error             { return nil }
func (s *noStream) Context() context.Context     { return s.ctx }
func (s *noStream) SendMsg(any) error            { return nil }

func (s *noStream) RecvMsg(any) error {
	return status.Errorf(codes.Unimplemented, "%s is a stream; a direct connection has none", s.method)
}

func copyMessage(to, from any) error {
	dst, ok1 := to.(proto.Message)
	src, ok2 := from.(proto.Message)
	if !ok1 || !ok2 {
		return status.Error(codes.Internal, fmt.Sprintf("not protobuf messages: %T, %T", to, from))
	}
	proto.Reset(dst)
	proto.Merge(dst, src)
	return nil
}
