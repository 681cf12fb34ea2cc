package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/sys/userns"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Capabilities of a snapshotter that clients ask for by these names.
const (
	capRemapIDs     = "remap-ids"
	capOnlyRemapIDs = "only-remap-ids"
)

// openSnapshotters opens what works here, describes what does and what does
// not, and settles the default. The backends know no namespaces.
func (s *Store) openSnapshotters(cfg Config) (map[string]snapshots.Snapshotter, error) {
	backends := map[string]snapshots.Snapshotter{}
	openers := map[string]func(*Descriptor, string) (snapshots.Snapshotter, error){
		Overlay: openOverlay,
		Native: func(_ *Descriptor, root string) (snapshots.Snapshotter, error) {
			return native.NewSnapshotter(root)
		},
	}
	for _, name := range []string{Overlay, Native} {
		root := s.path(cfg.Root, typeSnapshotter, name)
		d := Descriptor{
			Type:      typeSnapshotter,
			ID:        name,
			Platforms: []ocispec.Platform{platforms.DefaultSpec()},
			Exports:   map[string]string{"root": root},
		}
		sn, err := openers[name](&d, root)
		if err != nil {
			d.InitErr = fmt.Errorf("open snapshotter %s: %w", name, err)
		} else {
			backends[name] = sn
			s.undo.add("snapshotter "+name, sn.Close)
		}
		s.descriptors = append(s.descriptors, d)
	}
	if err := s.openProxies(cfg.Proxies, backends); err != nil {
		return nil, err
	}
	return backends, s.chooseDefault(cfg.Snapshotter, backends)
}

func (s *Store) chooseDefault(asked string, backends map[string]snapshots.Snapshotter) error {
	candidates := []string{Overlay, Native}
	if asked != "" {
		candidates = []string{asked}
	}
	for _, name := range candidates {
		if _, ok := backends[name]; ok {
			s.defaultSnapshotter = name
			return nil
		}
	}
	for _, d := range s.descriptors {
		if d.ID == candidates[0] && d.InitErr != nil {
			return fmt.Errorf("default snapshotter does not work here, choose another: %w", d.InitErr)
		}
	}
	return fmt.Errorf("default snapshotter %q is unknown, choose one of %v: %w",
		asked, slices.Sorted(maps.Keys(backends)), errdefs.ErrInvalidArgument)
}

// openOverlay mounts an overlay below root to see that it works there before
// it promises anything.
func openOverlay(d *Descriptor, root string) (snapshots.Snapshotter, error) {
	if err := overlayutils.Supported(root); err != nil {
		return nil, fmt.Errorf("overlay mounts do not work below %s: %w", root, err)
	}
	// Removal marks a snapshot and leaves its directory to Cleanup: a
	// synchronous one looks at all snapshots each time.
	opts := []overlay.Opt{overlay.AsynchronousRemove}
	if ok, err := overlayutils.SupportsIDMappedMounts(); err == nil && ok {
		opts = append(opts, overlay.WithRemapIDs)
		d.Capabilities = append(d.Capabilities, capRemapIDs)
	}
	// There is no fallback to a chown of every file.
	d.Capabilities = append(d.Capabilities, capOnlyRemapIDs)
	if !userns.RunningInUserNS() {
		// Layers extracted apart from each other need whiteout devices, which
		// cannot be made in a user namespace.
		d.Capabilities = append(d.Capabilities, snapshots.RebaseCap)
	}
	return overlay.NewSnapshotter(root, opts...)
}

// cleaners gives a function that removes the directories of snapshots that
// were removed before a crash. One that fails does not keep the others from it.
func cleaners(backends map[string]snapshots.Snapshotter) func(context.Context) error {
	return func(ctx context.Context) error {
		var errs []error
		for name, sn := range backends {
			c, ok := sn.(snapshots.Cleaner)
			if !ok {
				continue
			}
			// NotFound is a snapshotter without a single snapshot yet.
			if err := c.Cleanup(ctx); err != nil && !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("clean up snapshotter %s: %w", name, err))
			}
		}
		return errors.Join(errs...)
	}
}
