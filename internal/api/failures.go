package api

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unaryErrors gives every failed call, one that panicked included, an error
// that a client can print.
func unaryErrors(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
		defer func() {
			if v := recover(); v != nil {
				err = panicked(log, info.FullMethod, v)
			}
			err = oneLine(err)
		}()
		return handler(ctx, req)
	}
}

func streamErrors(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		defer func() {
			if v := recover(); v != nil {
				err = panicked(log, info.FullMethod, v)
			}
			err = oneLine(err)
		}()
		return handler(srv, stream)
	}
}

func ttrpcErrors(log *slog.Logger) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (_ any, err error) {
		defer func() {
			if v := recover(); v != nil {
				err = panicked(log, info.FullMethod, v)
			}
		}()
		return method(ctx, unmarshal)
	}
}

// panicked logs what only the log may hold and tells the client the rest.
func panicked(log *slog.Logger, method string, v any) error {
	log.Error("call panicked", slog.String("method", method), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
	return status.Errorf(codes.Internal, "%s: internal error in the daemon; its log has the stack", method)
}

// oneLine makes an error's text one line and drops the details by which errgrpc
// carries an error with several causes: clients print each cause on a line of
// its own, though all of them are in the text already. The code stays.
func oneLine(err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(errgrpc.ToGRPC(err))
	text := joinLines(st.Message(), st.Code())
	if text == st.Message() && len(st.Proto().GetDetails()) == 0 {
		return st.Err()
	}
	return status.Error(st.Code(), text)
}

// joinLines joins the lines of a text and leaves out those that say nothing
// new: what was said before, or the class that the code stands for.
func joinLines(text string, code codes.Code) string {
	first, rest, more := strings.Cut(text, "\n")
	if !more {
		return text
	}
	class := errgrpc.ToNative(status.Error(code, "")).Error()
	joined := strings.TrimSpace(first)
	for line := range strings.SplitSeq(rest, "\n") {
		line = strings.TrimSpace(strings.TrimLeft(line, ": "))
		if line == class || strings.Contains(joined, line) {
			continue
		}
		joined += "; " + line
	}
	return joined
}
