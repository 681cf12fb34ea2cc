package api

import (
	"context"
	"fmt"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

// snapshotBlock is how many snapshots go into one message of List.
const snapshotBlock = 100

// Snapshotters finds a snapshotter by its name; an unknown one is
// errdefs.ErrInvalidArgument.
type Snapshotters interface {
	Snapshotter(name string) (snapshots.Snapshotter, error)
}

// Snapshots is containerd.services.snapshots.v1 over any number of
// snapshotters. A request names the one that it means: there is no default.
type Snapshots struct {
	snapshotsapi.UnimplementedSnapshotsServer
	all Snapshotters
}

var _ snapshotsapi.SnapshotsServer = (*Snapshots)(nil)

// NewSnapshots makes the service.
func NewSnapshots(all Snapshotters) *Snapshots { return &Snapshots{all: all} }

func (s *Snapshots) find(name string) (snapshots.Snapshotter, error) {
	if name == "" {
		return nil, storeError(fmt.Errorf("snapshotter argument missing: %w", errdefs.ErrInvalidArgument))
	}
	sn, err := s.all.Snapshotter(name)
	return sn, storeError(err)
}

func withLabels(labels map[string]string) []snapshots.Opt {
	if labels == nil {
		return nil
	}
	return []snapshots.Opt{snapshots.WithLabels(labels)}
}

// Prepare makes a snapshot that can be written.
func (s *Snapshots) Prepare(ctx context.Context, r *snapshotsapi.PrepareSnapshotRequest) (*snapshotsapi.PrepareSnapshotResponse, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Prepare(ctx, r.Key, r.Parent, withLabels(r.Labels)...)
	if err != nil {
		return nil, storeError(err)
	}
	return &snapshotsapi.PrepareSnapshotResponse{Mounts: mount.ToProto(mounts)}, nil
}

// View makes a snapshot that can only be read.
func (s *Snapshots) View(ctx context.Context, r *snapshotsapi.ViewSnapshotRequest) (*snapshotsapi.ViewSnapshotResponse, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.View(ctx, r.Key, r.Parent, withLabels(r.Labels)...)
	if err != nil {
		return nil, storeError(err)
	}
	return &snapshotsapi.ViewSnapshotResponse{Mounts: mount.ToProto(mounts)}, nil
}

// Mounts gives the mounts of a prepared snapshot once more.
func (s *Snapshots) Mounts(ctx context.Context, r *snapshotsapi.MountsRequest) (*snapshotsapi.MountsResponse, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	mounts, err := sn.Mounts(ctx, r.Key)
	if err != nil {
		return nil, storeError(err)
	}
	return &snapshotsapi.MountsResponse{Mounts: mount.ToProto(mounts)}, nil
}

// Commit makes a written snapshot one that others can be built on.
func (s *Snapshots) Commit(ctx context.Context, r *snapshotsapi.CommitSnapshotRequest) (*emptypb.Empty, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	opts := withLabels(r.Labels)
	if r.Parent != "" {
		opts = append(opts, snapshots.WithParent(r.Parent))
	}
	if err := sn.Commit(ctx, r.Name, r.Key, opts...); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// Remove removes a snapshot that no other is built on.
func (s *Snapshots) Remove(ctx context.Context, r *snapshotsapi.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	if err := sn.Remove(ctx, r.Key); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

// Stat describes one snapshot.
func (s *Snapshots) Stat(ctx context.Context, r *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	info, err := sn.Stat(ctx, r.Key)
	if err != nil {
		return nil, storeError(err)
	}
	return &snapshotsapi.StatSnapshotResponse{Info: proxy.InfoToProto(info)}, nil
}

// Update changes labels.
func (s *Snapshots) Update(ctx context.Context, r *snapshotsapi.UpdateSnapshotRequest) (*snapshotsapi.UpdateSnapshotResponse, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	if r.Info == nil {
		return nil, required("Info")
	}
	info, err := sn.Update(ctx, proxy.InfoFromProto(r.Info), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, storeError(err)
	}
	return &snapshotsapi.UpdateSnapshotResponse{Info: proxy.InfoToProto(info)}, nil
}

// List describes all snapshots that match any of the filters.
func (s *Snapshots) List(r *snapshotsapi.ListSnapshotsRequest, stream snapshotsapi.Snapshots_ListServer) error {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return err
	}
	block := make([]*snapshotsapi.Info, 0, snapshotBlock)
	send := func() error {
		err := stream.Send(&snapshotsapi.ListSnapshotsResponse{Info: block})
		block = block[:0]
		return err
	}
	err = sn.Walk(stream.Context(), func(_ context.Context, info snapshots.Info) error {
		block = append(block, proxy.InfoToProto(info))
		if len(block) < snapshotBlock {
			return nil
		}
		return send()
	}, r.Filters...)
	if err != nil {
		return storeError(err)
	}
	if len(block) == 0 {
		return nil
	}
	return send()
}

// Usage says what a snapshot takes, without what it is built on.
func (s *Snapshots) Usage(ctx context.Context, r *snapshotsapi.UsageRequest) (*snapshotsapi.UsageResponse, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	usage, err := sn.Usage(ctx, r.Key)
	if err != nil {
		return nil, storeError(err)
	}
	return proxy.UsageToProto(usage), nil
}

// Cleanup removes what removed snapshots have left, where the snapshotter
// knows of such a thing.
func (s *Snapshots) Cleanup(ctx context.Context, r *snapshotsapi.CleanupRequest) (*emptypb.Empty, error) {
	sn, err := s.find(r.Snapshotter)
	if err != nil {
		return nil, err
	}
	c, ok := sn.(snapshots.Cleaner)
	if !ok {
		return nil, storeError(fmt.Errorf("snapshotter %s has nothing to clean up: %w", r.Snapshotter, errdefs.ErrNotImplemented))
	}
	if err := c.Cleanup(ctx); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}
