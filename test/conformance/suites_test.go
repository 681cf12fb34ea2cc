package api_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	contentsuite "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsuite "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/berthd/berth/internal/storage"
)

// containerd's own suites know no leases, and what no lease holds may be
// collected at any time: the contexts and snapshotters given to them bring
// one.

func TestContentSuite(t *testing.T) {
	d := startDaemon(t)
	var n atomic.Int32
	wrap := func(ctx context.Context, _ bool) (context.Context, func(context.Context) error, error) {
		ctx = namespaces.WithNamespace(ctx, fmt.Sprintf("suite-%d", n.Add(1)))
		l, err := d.LeasesService().Create(ctx, leases.WithRandomID())
		if err != nil {
			return nil, nil, err
		}
		return leases.WithLease(ctx, l.ID), func(ctx context.Context) error { return d.LeasesService().Delete(ctx, l) }, nil
	}
	open := func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
		return contentsuite.SetContextWrapper(ctx, wrap), d.ContentStore(), func() error { return nil }, nil
	}
	contentsuite.ContentSuite(t, "grpc", open)
	contentsuite.ContentCrossNSSharedSuite(t, "grpc", open)
}

func TestSnapshotSuite(t *testing.T) {
	const name = storage.Overlay
	snapshotsuite.SnapshotterSuite(t, name, func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
		d := startDaemon(t)
		l, err := d.LeasesService().Create(namespaces.WithNamespace(ctx, "testsuite"), leases.WithRandomID())
		if err != nil {
			return nil, nil, err
		}
		return &leasedSnapshotter{d.SnapshotService(name), l.ID}, func() error { return nil }, nil
	})
}

// leasedSnapshotter puts all that it makes under a lease.
type leasedSnapshotter struct {
	snapshots.Snapshotter
	lease string
}

func (l *leasedSnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return l.Snapshotter.Prepare(leases.WithLease(ctx, l.lease), key, parent, opts...)
}

func (l *leasedSnapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return l.Snapshotter.View(leases.WithLease(ctx, l.lease), key, parent, opts...)
}

func (l *leasedSnapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return l.Snapshotter.Commit(leases.WithLease(ctx, l.lease), name, key, opts...)
}
