package api

import (
	"context"

	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/proxy"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Mounts is containerd.services.mounts.v1 over a mount manager. Mounts that
// need no manager are Unimplemented there: the caller mounts them by itself.
type Mounts struct {
	mountsapi.UnimplementedMountsServer
	manager mount.Manager
}

var _ mountsapi.MountsServer = (*Mounts)(nil)

// NewMounts makes the service.
func NewMounts(manager mount.Manager) *Mounts { return &Mounts{manager: manager} }

// Activate performs the mounts that the kernel cannot do in one call.
func (s *Mounts) Activate(ctx context.Context, r *mountsapi.ActivateRequest) (*mountsapi.ActivateResponse, error) {
	var opts []mount.ActivateOpt
	if r.Temporary {
		opts = append(opts, mount.WithTemporary)
	}
	if r.Labels != nil {
		opts = append(opts, mount.WithLabels(r.Labels))
	}
	info, err := s.manager.Activate(ctx, r.Name, mount.FromProto(r.Mounts), opts...)
	if err != nil {
		return nil, storeError(err)
	}
	return &mountsapi.ActivateResponse{Info: proxy.ActivationInfoToProto(info)}, nil
}

// Deactivate undoes an activation.
func (s *Mounts) Deactivate(ctx context.Context, r *mountsapi.DeactivateRequest) (*emptypb.Empty, error) {
	if err := s.manager.Deactivate(ctx, r.Name); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// Info describes an activation.
func (s *Mounts) Info(ctx context.Context, r *mountsapi.InfoRequest) (*mountsapi.InfoResponse, error) {
	info, err := s.manager.Info(ctx, r.Name)
	if err != nil {
		return nil, storeError(err)
	}
	return &mountsapi.InfoResponse{Info: proxy.ActivationInfoToProto(info)}, nil
}

// Update changes the fields of an activation that the mask names.
func (s *Mounts) Update(ctx context.Context, r *mountsapi.UpdateRequest) (*mountsapi.UpdateResponse, error) {
	info, err := s.manager.Update(ctx, proxy.ActivationInfoFromProto(r.Info), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, storeError(err)
	}
	return &mountsapi.UpdateResponse{Info: proxy.ActivationInfoToProto(info)}, nil
}

// List describes all activations, a message each.
func (s *Mounts) List(r *mountsapi.ListRequest, stream mountsapi.Mounts_ListServer) error {
	infos, err := s.manager.List(stream.Context(), r.Filters...)
	if err != nil {
		return storeError(err)
	}
	for _, info := range infos {
		if err := stream.Send(&mountsapi.ListMessage{Info: proxy.ActivationInfoToProto(info)}); err != nil {
			return err
		}
	}
	return nil
}
