package storage

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/local"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/platforms"

	// Their types name sources and destinations on the wire.
	_ "github.com/containerd/containerd/v2/core/transfer/archive"
	_ "github.com/containerd/containerd/v2/core/transfer/registry"
)

// newTransfer wires pull, push, import, export and tag.
func (s *Store) newTransfer(cfg Config) transfer.Transferrer {
	return &transferrer{
		snapshotter: s.defaultSnapshotter,
		Transferrer: local.NewTransferService(documentStore{s.Content}, s.Images, local.TransferConfig{
			Leases:                      lastingLeases{s.Leases},
			MaxConcurrentDownloads:      cfg.MaxConcurrentDownloads,
			MaxConcurrentUploadedLayers: cfg.MaxConcurrentUploads,
			MaxConcurrentUnpacks:        cfg.MaxConcurrentUnpacks,
			DuplicationSuppressor:       &keyLock{},
			UnpackPlatforms:             s.unpackPlatforms(),
			RegistryConfigPath:          cfg.HostDir,
		}),
	}
}

// unpackPlatforms lets an image be unpacked into every snapshotter. The
// platform is matched by its operating system only: whether an image of
// another architecture can be run is not for the store to say.
func (s *Store) unpackPlatforms() []unpack.Platform {
	var ps []unpack.Platform
	for _, d := range s.descriptors {
		sn, ok := s.snapshotters[d.ID]
		if d.Type != typeSnapshotter || !ok {
			continue
		}
		ps = append(ps, unpack.Platform{
			Platform:                platforms.OnlyOS(d.Platforms[0]),
			SnapshotterKey:          d.ID,
			Snapshotter:             sn,
			SnapshotterExports:      d.Exports,
			SnapshotterCapabilities: d.Capabilities,
			Applier:                 s.Diff,
		})
	}
	return ps
}

var _ interface {
	transfer.ImageStorer
	transfer.ImageFilterer
	transfer.ImageUnpacker
} = (*defaultedStore)(nil)

// transferrer fills in the default snapshotter where an image is to be
// unpacked and the client names none, and makes errors readable.
type transferrer struct {
	transfer.Transferrer
	snapshotter string
}

func (t *transferrer) Transfer(ctx context.Context, src, dst any, opts ...transfer.Opt) error {
	to := dst
	if is, ok := dst.(*image.Store); ok {
		to = &defaultedStore{imageStore: is, snapshotter: t.snapshotter}
	}
	return transferError(src, dst, t.Transferrer.Transfer(ctx, src, to, opts...))
}

// imageStore gives the embedded field another name than its method Store.
type imageStore = image.Store

type defaultedStore struct {
	*imageStore
	snapshotter string
}

func (d *defaultedStore) UnpackPlatforms() []transfer.UnpackConfiguration {
	configs := slices.Clone(d.imageStore.UnpackPlatforms())
	for i := range configs {
		if configs[i].Snapshotter == "" {
			configs[i].Snapshotter = d.snapshotter
		}
	}
	return configs
}
