package api

import (
	"context"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
)

// Differ applies diffs and makes them.
type Differ interface {
	diff.Applier
	diff.Comparer
}

// Diff is containerd.services.diff.v1 over one differ.
type Diff struct {
	diffapi.UnimplementedDiffServer
	differ Differ
}

var _ diffapi.DiffServer = (*Diff)(nil)

// NewDiff makes the service.
func NewDiff(differ Differ) *Diff { return &Diff{differ: differ} }

// Apply extracts a diff into mounts.
func (s *Diff) Apply(ctx context.Context, r *diffapi.ApplyRequest) (*diffapi.ApplyResponse, error) {
	if r.Diff == nil {
		return nil, required("Diff")
	}
	opts := []diff.ApplyOpt{diff.WithSyncFs(r.SyncFs)}
	if r.Payloads != nil {
		payloads := make(map[string]typeurl.Any, len(r.Payloads))
		for k, v := range r.Payloads {
			payloads[k] = v
		}
		opts = append(opts, diff.WithPayloads(payloads))
	}
	applied, err := s.differ.Apply(ctx, oci.DescriptorFromProto(r.Diff), mount.FromProto(r.Mounts), opts...)
	if err != nil {
		return nil, storeError(err)
	}
	return &diffapi.ApplyResponse{Applied: oci.DescriptorToProto(applied)}, nil
}

// Diff stores the difference between two sets of mounts.
func (s *Diff) Diff(ctx context.Context, r *diffapi.DiffRequest) (*diffapi.DiffResponse, error) {
	var opts []diff.Opt
	if r.MediaType != "" {
		opts = append(opts, diff.WithMediaType(r.MediaType))
	}
	if r.Ref != "" {
		opts = append(opts, diff.WithReference(r.Ref))
	}
	if r.Labels != nil {
		opts = append(opts, diff.WithLabels(r.Labels))
	}
	if r.SourceDateEpoch != nil {
		at := r.SourceDateEpoch.AsTime()
		opts = append(opts, diff.WithSourceDateEpoch(&at))
	}
	made, err := s.differ.Compare(ctx, mount.FromProto(r.Left), mount.FromProto(r.Right), opts...)
	if err != nil {
		return nil, storeError(err)
	}
	return &diffapi.DiffResponse{Diff: oci.DescriptorToProto(made)}, nil
}
