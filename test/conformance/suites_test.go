package conformance

import (
	"context"
	"errors"
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
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/test/harness"
)

// containerd's own suites know no leases, and what no lease holds may be
// collected at any time: the contexts and snapshotters given to them bring
// one. Each of their tests has a namespace of its own.

func TestContentSuite(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		c := d.Client(t)
		var n atomic.Int32
		wrap := func(ctx context.Context, _ bool) (context.Context, func(context.Context) error, error) {
			ctx = namespaces.WithNamespace(ctx, fmt.Sprintf("%s-content%d", d.Namespace, n.Add(1)))
			l, err := c.LeasesService().Create(ctx, leases.WithRandomID())
			if err != nil {
				return nil, nil, err
			}
			return leases.WithLease(ctx, l.ID), func(ctx context.Context) error {
				// Some of it is labelled as a root of the garbage collection.
				var blobs []digest.Digest
				err := c.ContentStore().Walk(ctx, func(info content.Info) error {
					blobs = append(blobs, info.Digest)
					return nil
				})
				for _, blob := range blobs {
					err = errors.Join(err, c.ContentStore().Delete(ctx, blob))
				}
				return errors.Join(err, c.LeasesService().Delete(ctx, l))
			}, nil
		}
		open := func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
			return contentsuite.SetContextWrapper(ctx, wrap), c.ContentStore(), func() error { return nil }, nil
		}
		contentsuite.ContentSuite(t, "grpc", open)
		contentsuite.ContentCrossNSSharedSuite(t, "grpc", open)
	})
}

func TestSnapshotSuite(t *testing.T) {
	const name = "overlayfs"
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		c := d.Client(t)
		var n atomic.Int32
		snapshotsuite.SnapshotterSuite(t, name, func(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
			ctx = namespaces.WithNamespace(ctx, fmt.Sprintf("%s-snapshots%d", d.Namespace, n.Add(1)))
			l, err := c.LeasesService().Create(ctx, leases.WithRandomID())
			if err != nil {
				return nil, nil, err
			}
			s := &suiteSnapshotter{Snapshotter: c.SnapshotService(name), in: leases.WithLease(ctx, l.ID)}
			return s, func() error {
				if err := s.removeAll(); err != nil {
					return err
				}
				return c.LeasesService().Delete(ctx, l)
			}, nil
		})
	})
}

// suiteSnapshotter works in one namespace and one lease, whatever its caller's.
type suiteSnapshotter struct {
	snapshots.Snapshotter
	in context.Context //nolint:containedctx // names the namespace and the lease
}

func (s *suiteSnapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	return s.Snapshotter.Stat(s.in, key)
}

func (s *suiteSnapshotter) Update(_ context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	return s.Snapshotter.Update(s.in, info, fields...)
}

func (s *suiteSnapshotter) Usage(_ context.Context, key string) (snapshots.Usage, error) {
	return s.Snapshotter.Usage(s.in, key)
}

func (s *suiteSnapshotter) Mounts(_ context.Context, key string) ([]mount.Mount, error) {
	return s.Snapshotter.Mounts(s.in, key)
}

func (s *suiteSnapshotter) Prepare(_ context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(s.in, key, parent, opts...)
}

func (s *suiteSnapshotter) View(_ context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(s.in, key, parent, opts...)
}

func (s *suiteSnapshotter) Commit(_ context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.Snapshotter.Commit(s.in, name, key, opts...)
}

func (s *suiteSnapshotter) Remove(_ context.Context, key string) error {
	return s.Snapshotter.Remove(s.in, key)
}

func (s *suiteSnapshotter) Walk(_ context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.Snapshotter.Walk(s.in, fn, filters...)
}

// removeAll removes children first: a parent is refused while it has some.
func (s *suiteSnapshotter) removeAll() error {
	for {
		var keys []string
		err := s.Walk(s.in, func(_ context.Context, info snapshots.Info) error {
			keys = append(keys, info.Name)
			return nil
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		removed := 0
		for _, key := range keys {
			err := s.Remove(s.in, key)
			if err == nil {
				removed++
			} else if !errdefs.IsFailedPrecondition(err) {
				return err
			}
		}
		if removed == 0 {
			return fmt.Errorf("none of %v can be removed: %w", keys, errdefs.ErrFailedPrecondition)
		}
	}
}
