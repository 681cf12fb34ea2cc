package api

import (
	"context"

	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
)

// SandboxStore is containerd.services.sandbox.v1.Store over a store of sandbox
// records.
type SandboxStore struct {
	sandboxapi.UnimplementedStoreServer
	store sandbox.Store
}

var _ sandboxapi.StoreServer = (*SandboxStore)(nil)

// NewSandboxStore makes the service.
func NewSandboxStore(store sandbox.Store) *SandboxStore { return &SandboxStore{store: store} }

// Create stores a new record.
func (s *SandboxStore) Create(ctx context.Context, r *sandboxapi.StoreCreateRequest) (*sandboxapi.StoreCreateResponse, error) {
	if r.Sandbox == nil {
		return nil, required("Sandbox")
	}
	sb, err := s.store.Create(ctx, sandboxFromProto(r.Sandbox))
	if err != nil {
		return nil, storeError(err)
	}
	return &sandboxapi.StoreCreateResponse{Sandbox: sandbox.ToProto(&sb)}, nil
}

// Update changes the named fields, or all that can be changed.
func (s *SandboxStore) Update(ctx context.Context, r *sandboxapi.StoreUpdateRequest) (*sandboxapi.StoreUpdateResponse, error) {
	if r.Sandbox == nil {
		return nil, required("Sandbox")
	}
	sb, err := s.store.Update(ctx, sandboxFromProto(r.Sandbox), r.Fields...)
	if err != nil {
		return nil, storeError(err)
	}
	return &sandboxapi.StoreUpdateResponse{Sandbox: sandbox.ToProto(&sb)}, nil
}

// List gives the records that match any of the filters.
func (s *SandboxStore) List(ctx context.Context, r *sandboxapi.StoreListRequest) (*sandboxapi.StoreListResponse, error) {
	sbs, err := s.store.List(ctx, r.Filters...)
	if err != nil {
		return nil, storeError(err)
	}
	resp := &sandboxapi.StoreListResponse{}
	for i := range sbs {
		resp.List = append(resp.List, sandbox.ToProto(&sbs[i]))
	}
	return resp, nil
}

// Get gives one record.
func (s *SandboxStore) Get(ctx context.Context, r *sandboxapi.StoreGetRequest) (*sandboxapi.StoreGetResponse, error) {
	sb, err := s.store.Get(ctx, r.SandboxID)
	if err != nil {
		return nil, storeError(err)
	}
	return &sandboxapi.StoreGetResponse{Sandbox: sandbox.ToProto(&sb)}, nil
}

// Delete removes a record.
func (s *SandboxStore) Delete(ctx context.Context, r *sandboxapi.StoreDeleteRequest) (*sandboxapi.StoreDeleteResponse, error) {
	if err := s.store.Delete(ctx, r.SandboxID); err != nil {
		return nil, storeError(err)
	}
	return &sandboxapi.StoreDeleteResponse{}, nil
}

// sandboxFromProto fills in a missing runtime, which sandbox.FromProto takes
// for granted.
func sandboxFromProto(sb *types.Sandbox) sandbox.Sandbox {
	if sb.Runtime == nil {
		sb.Runtime = &types.Sandbox_Runtime{}
	}
	return sandbox.FromProto(sb)
}
