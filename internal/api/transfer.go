package api

import (
	"context"
	"fmt"

	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/transfer"
	transferplugins "github.com/containerd/containerd/v2/core/transfer/plugins"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// TransferConfig says what the transfer service works on.
type TransferConfig struct {
	Transferrer transfer.Transferrer
	// Streams finds the streams that requests name: progress, archives,
	// credentials.
	Streams streaming.StreamGetter
	// HostDir has the configuration of registry hosts for requests that name no
	// directory. Empty means none.
	HostDir string
}

// Transfer is containerd.services.transfer.v1: pull, push, import, export and
// tag of images.
type Transfer struct {
	transferapi.UnimplementedTransferServer
	cfg TransferConfig
}

var _ transferapi.TransferServer = (*Transfer)(nil)

// NewTransfer makes the service.
func NewTransfer(cfg TransferConfig) *Transfer { return &Transfer{cfg: cfg} }

// Transfer moves an image from source to destination.
func (s *Transfer) Transfer(ctx context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	if r.Source == nil {
		return nil, required("Source")
	}
	if r.Destination == nil {
		return nil, required("Destination")
	}
	var opts []transfer.Opt
	if name := r.Options.GetProgressStream(); name != "" {
		stream, err := s.cfg.Streams.Get(ctx, name)
		if err != nil {
			return nil, storeError(err)
		}
		// Its end tells the client that there will be no more.
		defer stream.Close()
		opts = append(opts, transfer.WithProgress(progressTo(stream)))
	}
	src, err := s.resolve(ctx, r.Source)
	if err != nil {
		return nil, storeError(fmt.Errorf("transfer source: %w", err))
	}
	dst, err := s.resolve(ctx, r.Destination)
	if err != nil {
		return nil, storeError(fmt.Errorf("transfer destination: %w", err))
	}
	if err := s.cfg.Transferrer.Transfer(ctx, src, dst, opts...); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// progressTo sends progress to the client. What cannot be sent is dropped: a
// client that has gone ends the transfer through its context.
func progressTo(stream streaming.Stream) transfer.ProgressFunc {
	return func(p transfer.Progress) {
		var desc *types.Descriptor
		if p.Desc != nil {
			desc = oci.DescriptorToProto(*p.Desc)
		}
		msg, err := typeurl.MarshalAny(&transfertypes.Progress{
			Event: p.Event, Name: p.Name, Parents: p.Parents, Progress: p.Progress, Total: p.Total, Desc: desc,
		})
		if err == nil {
			_ = stream.Send(msg)
		}
	}
}

// streamUser is a source or destination that reads or writes the client's
// streams.
type streamUser interface {
	UnmarshalAny(context.Context, streaming.StreamGetter, typeurl.Any) error
}

// resolve gives the value that a message stands for.
func (s *Transfer) resolve(ctx context.Context, a *anypb.Any) (any, error) {
	obj, err := transferplugins.ResolveType(a)
	if errdefs.IsNotFound(err) {
		return typeurl.UnmarshalAny(a)
	}
	if err != nil {
		return nil, err
	}
	if a, err = s.withHostDir(a); err != nil {
		return nil, err
	}
	if u, ok := obj.(streamUser); ok {
		return obj, u.UnmarshalAny(ctx, s.cfg.Streams, a)
	}
	return obj, typeurl.UnmarshalTo(a, obj)
}

// withHostDir puts the daemon's directory into a registry that names none.
func (s *Transfer) withHostDir(a *anypb.Any) (*anypb.Any, error) {
	var reg transfertypes.OCIRegistry
	if s.cfg.HostDir == "" || !typeurl.Is(a, &reg) {
		return a, nil
	}
	if err := proto.Unmarshal(a.Value, &reg); err != nil {
		return nil, fmt.Errorf("read registry: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if reg.Resolver.GetHostDir() != "" {
		return a, nil
	}
	if reg.Resolver == nil {
		reg.Resolver = &transfertypes.RegistryResolver{}
	}
	reg.Resolver.HostDir = s.cfg.HostDir
	value, err := proto.Marshal(&reg)
	if err != nil {
		return nil, fmt.Errorf("write registry: %w", err)
	}
	return &anypb.Any{TypeUrl: a.TypeUrl, Value: value}, nil
}
