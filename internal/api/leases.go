package api

import (
	"context"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Leases is containerd.services.leases.v1 over a lease manager.
type Leases struct {
	leasesapi.UnimplementedLeasesServer
	manager leases.Manager
}

var _ leasesapi.LeasesServer = (*Leases)(nil)

// NewLeases makes the service. The manager collects garbage before it returns
// from a synchronous delete.
func NewLeases(manager leases.Manager) *Leases { return &Leases{manager: manager} }

// Create makes a lease, with an id of its own where the request has none.
func (s *Leases) Create(ctx context.Context, r *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	id := leases.WithRandomID()
	if r.ID != "" {
		id = leases.WithID(r.ID)
	}
	l, err := s.manager.Create(ctx, id, leases.WithLabels(r.Labels))
	if err != nil {
		return nil, storeError(err)
	}
	return &leasesapi.CreateResponse{Lease: leaseToProto(l)}, nil
}

// Delete gives up a lease; what only it held can be collected.
func (s *Leases) Delete(ctx context.Context, r *leasesapi.DeleteRequest) (*emptypb.Empty, error) {
	var opts []leases.DeleteOpt
	if r.Sync {
		opts = append(opts, leases.SynchronousDelete)
	}
	if err := s.manager.Delete(ctx, leases.Lease{ID: r.ID}, opts...); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// List gives the leases that match any of the filters.
func (s *Leases) List(ctx context.Context, r *leasesapi.ListRequest) (*leasesapi.ListResponse, error) {
	ls, err := s.manager.List(ctx, r.Filters...)
	if err != nil {
		return nil, storeError(err)
	}
	resp := &leasesapi.ListResponse{}
	for _, l := range ls {
		resp.Leases = append(resp.Leases, leaseToProto(l))
	}
	return resp, nil
}

// AddResource puts a resource under a lease.
func (s *Leases) AddResource(ctx context.Context, r *leasesapi.AddResourceRequest) (*emptypb.Empty, error) {
	if r.Resource == nil {
		return nil, required("Resource")
	}
	if err := s.manager.AddResource(ctx, leases.Lease{ID: r.ID}, resourceFromProto(r.Resource)); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// DeleteResource takes a resource out of a lease.
func (s *Leases) DeleteResource(ctx context.Context, r *leasesapi.DeleteResourceRequest) (*emptypb.Empty, error) {
	if r.Resource == nil {
		return nil, required("Resource")
	}
	if err := s.manager.DeleteResource(ctx, leases.Lease{ID: r.ID}, resourceFromProto(r.Resource)); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// ListResources gives what a lease holds.
func (s *Leases) ListResources(ctx context.Context, r *leasesapi.ListResourcesRequest) (*leasesapi.ListResourcesResponse, error) {
	held, err := s.manager.ListResources(ctx, leases.Lease{ID: r.ID})
	if err != nil {
		return nil, storeError(err)
	}
	resp := &leasesapi.ListResourcesResponse{}
	for _, h := range held {
		resp.Resources = append(resp.Resources, &leasesapi.Resource{ID: h.ID, Type: h.Type})
	}
	return resp, nil
}

func leaseToProto(l leases.Lease) *leasesapi.Lease {
	return &leasesapi.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: timestamppb.New(l.CreatedAt)}
}

func resourceFromProto(r *leasesapi.Resource) leases.Resource {
	return leases.Resource{ID: r.ID, Type: r.Type}
}
