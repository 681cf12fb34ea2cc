// Package storage is everything that Berth keeps: blobs, images, snapshots,
// containers, leases, namespaces. It wires containerd's storage libraries into
// one [Store], by hand and without containerd's plugin registry, with the
// directories below the root that containerd uses, so that a root can be
// looked at (and taken over) with the tools people know.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/errdefs"
)

// Names of the snapshotters that this package brings.
const (
	Overlay = "overlayfs"
	Native  = "native"
)

// DefaultHostDir is where the configuration of registry hosts is looked for.
const DefaultHostDir = "/etc/containerd/certs.d"

// Config says where a store lives and how it behaves. Root and State are
// needed; every other field has a useful zero value.
type Config struct {
	// Root holds what survives a reboot, State what does not (mounts that are
	// active). Open creates them if need be.
	Root, State string
	// Publisher gets the events of images, content and snapshots; nil for none.
	Publisher events.Publisher
	// Snapshotter is the default snapshotter. Empty means overlayfs, or native
	// where overlay mounts do not work; a name that does not work is an error.
	Snapshotter string
	// Proxies are further snapshotters by their names, which other processes
	// serve.
	Proxies map[string]ProxySnapshotter
	// GC is when garbage is collected.
	GC GCConfig
	// HostDir holds the configuration of registry hosts for clients that bring
	// none. Empty means DefaultHostDir; it need not exist.
	HostDir string
	// MaxConcurrentDownloads and MaxConcurrentUploads bound the layers that are
	// in transfer at once, over all pulls and pushes. 0 means 3.
	MaxConcurrentDownloads, MaxConcurrentUploads int
	// MaxConcurrentUnpacks bounds the layers of pulls that are extracted at
	// once. 0 means the number of CPUs, at most 4.
	MaxConcurrentUnpacks int
	// Log gets what no caller can be told, such as a failed collection. nil
	// discards.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	for name, dir := range map[string]*string{"root": &c.Root, "state": &c.State} {
		if *dir == "" {
			return fmt.Errorf("open storage: no %s directory given: %w", name, errdefs.ErrInvalidArgument)
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("open storage: %s directory %q: %w", name, *dir, err)
		}
		*dir = abs
	}
	if c.HostDir == "" {
		c.HostDir = DefaultHostDir
	}
	if c.MaxConcurrentDownloads == 0 {
		c.MaxConcurrentDownloads = 3
	}
	if c.MaxConcurrentUploads == 0 {
		c.MaxConcurrentUploads = 3
	}
	if c.MaxConcurrentUnpacks == 0 {
		c.MaxConcurrentUnpacks = min(runtime.NumCPU(), 4)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Differ applies a diff to mounts and makes one from them.
type Differ struct {
	diff.Applier
	diff.Comparer
}

// Store is an open root. All that takes a context works on the namespace that
// the context names and answers errdefs.ErrFailedPrecondition without one.
type Store struct {
	Content    content.Store
	Containers containers.Store
	Images     images.Store
	// Leases collects garbage before a delete with leases.SynchronousDelete
	// returns.
	Leases     leases.Manager
	Namespaces *Namespaces
	Sandboxes  sandbox.Store
	Diff       Differ
	Mounts     mount.Manager
	Transfer   transfer.Transferrer
	Streams    *Streams
	GC         *Collector

	// HostDir is the directory of Config.HostDir, with its default.
	HostDir string

	defaultSnapshotter string
	// snapshotters are the namespaced ones; fixed after Open.
	snapshotters map[string]snapshots.Snapshotter
	descriptors  []Descriptor
	// undo closes what Open opened, last first.
	undo closers
}

// Open opens the root, creating it if need be. A root that another process
// has open is errdefs.ErrFailedPrecondition, with the pid of the process
// where it can be known. The caller closes the store.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := makeDirs(cfg); err != nil {
		return nil, err
	}
	s := &Store{HostDir: cfg.HostDir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo.close())
		}
	}()

	// The metadata database comes first: its lock is what keeps a second
	// process out of all other files.
	bdb, err := openBolt(s.path(cfg.Root, typeMetadata, "bolt"), "meta.db")
	if err != nil {
		return nil, err
	}
	s.undo.add("metadata database", bdb.Close)

	blobs, err := local.NewStore(s.path(cfg.Root, typeContent, "content"))
	if err != nil {
		return nil, fmt.Errorf("open content store below %s: %w", cfg.Root, err)
	}
	backends, err := s.openSnapshotters(cfg)
	if err != nil {
		return nil, err
	}

	var opts []metadata.DBOpt
	if cfg.Publisher != nil {
		opts = append(opts, metadata.WithEventsPublisher(cfg.Publisher))
	}
	db := metadata.NewDB(bdb, blobs, backends, opts...)
	if err := db.Init(ctx); err != nil {
		return nil, fmt.Errorf("read metadata database %s: %w", bdb.Path(), err)
	}
	if err := s.openMounts(cfg, db); err != nil {
		return nil, err
	}
	s.Streams = newStreams()
	db.RegisterCollectibleResource(metadata.ResourceStream, s.Streams)
	s.GC = newCollector(db, cleaners(backends), cfg.GC, cfg.Log)
	s.undo.add("garbage collector", s.GC.Close)

	s.Content = db.ContentStore()
	s.Containers = metadata.NewContainerStore(db)
	s.Images = metadata.NewImageStore(db)
	s.Leases = &collectingLeases{Manager: metadata.NewLeaseManager(db), gc: s.GC}
	s.Namespaces = &Namespaces{db: db}
	s.Sandboxes = metadata.NewSandboxStore(db)
	s.Diff = Differ{
		Applier:  apply.NewFileSystemApplierWithMountManager(s.Content, s.Mounts),
		Comparer: walking.NewWalkingDiff(s.Content),
	}
	s.snapshotters = db.Snapshotters()
	s.Transfer = s.newTransfer(cfg)
	s.describe(cfg, bdb.Path())
	return s, nil
}

// makeDirs makes root unreadable for others (images hold secrets) and state
// passable (containers in user namespaces reach their bundles through it).
func makeDirs(cfg Config) error {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return fmt.Errorf("create root directory: %w", err)
	}
	if err := os.Chmod(cfg.Root, 0o700); err != nil {
		return fmt.Errorf("restrict root directory: %w", err)
	}
	if err := os.MkdirAll(cfg.State, 0o711); err != nil {
		return fmt.Errorf("create state directory: %w", err)
	}
	return nil
}

// path is the directory of a part, named as containerd names it.
func (s *Store) path(base, typ, id string) string {
	return filepath.Join(base, typ+"."+id)
}

// DefaultSnapshotter is the name of the snapshotter that "" stands for.
func (s *Store) DefaultSnapshotter() string { return s.defaultSnapshotter }

// Snapshotter gives the snapshotter of that name, "" the default one. An
// unknown name is errdefs.ErrInvalidArgument. The store closes it.
func (s *Store) Snapshotter(name string) (snapshots.Snapshotter, error) {
	if name == "" {
		name = s.defaultSnapshotter
	}
	if sn, ok := s.snapshotters[name]; ok {
		return sn, nil
	}
	return nil, fmt.Errorf("snapshotter not loaded: %s: %w", name, errdefs.ErrInvalidArgument)
}

// Close ends a collection in progress and closes all files. Calls after it,
// and calls still in flight, fail; nothing that was acknowledged is lost.
func (s *Store) Close() error { return s.undo.close() }

// closers is a stack of things to close.
type closers []func() error

func (c *closers) add(what string, fn func() error) {
	*c = append(*c, func() error {
		if err := fn(); err != nil {
			return fmt.Errorf("close %s: %w", what, err)
		}
		return nil
	})
}

// close runs all closers, last first, once.
func (c *closers) close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}
