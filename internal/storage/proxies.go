package storage

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// reconnectDelay is the longest wait before a snapshotter that went away is
// looked for again.
const reconnectDelay = 3 * time.Second

// ProxySnapshotter is a snapshotter that another process serves. It need not
// run when the store opens: a call fails with errdefs.ErrUnavailable as long as
// it does not.
type ProxySnapshotter struct {
	// Address is the path of its unix socket; it speaks containerd's snapshots
	// service there.
	Address string
	// Platform is that of the containers it is for, such as "linux/arm64". Empty
	// means the host's.
	Platform string
	// Capabilities and Exports are what clients, and the unpacking of images, are
	// told of it, such as "enable_remote_snapshot_annotations" = "true".
	Capabilities []string
	Exports      map[string]string
}

// openProxies adds the snapshotters of other processes to the backends.
func (s *Store) openProxies(proxies map[string]ProxySnapshotter, backends map[string]snapshots.Snapshotter) error {
	for _, name := range slices.Sorted(maps.Keys(proxies)) {
		if name == Overlay || name == Native {
			return fmt.Errorf("snapshotter %s of another process: the name is taken, choose another: %w", name, errdefs.ErrInvalidArgument)
		}
		p := proxies[name]
		address := strings.TrimPrefix(p.Address, "unix://")
		if !filepath.IsAbs(address) {
			return fmt.Errorf("snapshotter %s of another process: address %q is not the absolute path of a socket: %w", name, p.Address, errdefs.ErrInvalidArgument)
		}
		platform := platforms.DefaultSpec()
		if p.Platform != "" {
			var err error
			if platform, err = platforms.Parse(p.Platform); err != nil {
				return fmt.Errorf("snapshotter %s of another process: %w", name, errors.Join(err, errdefs.ErrInvalidArgument))
			}
		}
		conn, err := grpc.NewClient("unix://"+address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectDelay,
			}}),
			grpc.WithDefaultCallOptions(
				grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)),
		)
		if err != nil {
			return fmt.Errorf("snapshotter %s of another process: %w", name, err)
		}
		s.undo.add("connection of snapshotter "+name, conn.Close)
		backends[name] = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name)
		exports := map[string]string{"address": p.Address}
		maps.Copy(exports, p.Exports)
		s.descriptors = append(s.descriptors, Descriptor{
			Type: typeSnapshotter, ID: name, Platforms: []ocispec.Platform{platform},
			Capabilities: p.Capabilities, Exports: exports,
		})
	}
	return nil
}
