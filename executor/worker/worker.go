// Package worker makes a BuildKit worker of a containerd client, and of that
// what serves builds: what `buildkitd` is made of, for programs that build.
package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/util/winlayers"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/label"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/berthd/berth/executor"
)

// Config of a worker. Root is needed.
type Config struct {
	// Root holds BuildKit's cache records. It is made 0700; one worker uses it.
	Root string
	// Snapshotter is containerd's. Default overlayfs.
	Snapshotter string
	// Executor says how steps run. Its Namespace is the worker's too; its
	// Networks and Proxy are those of Network unless they are set.
	Executor executor.Config
	// Network says which networks steps have. Default: CNI where it is
	// configured, else the host's.
	Network netproviders.Opt
	// RegistryHosts finds registries. Default: as the image names say.
	RegistryHosts docker.RegistryHosts
	// Platforms that steps run on. Default: this machine's.
	Platforms []ocispecs.Platform
	// GC says what of the cache may go and when; none keeps all.
	GC []bkclient.PruneInfo
	// Labels are added to those that tell what the worker is.
	Labels map[string]string
	// MaxSteps bounds the steps that run at once; 0 does not.
	MaxSteps int64
}

// Worker is a BuildKit worker whose steps run on Berth's executor.
type Worker struct {
	*base.Worker
	steps *executor.Executor
}

// New makes a worker on a client, whose daemon sees the same files as this
// process. The client stays the caller's. The caller closes the worker, or the
// [Server] that it gives it to.
func New(ctx context.Context, c *client.Client, cfg Config) (_ *Worker, err error) {
	if cfg.Root == "" {
		return nil, errors.New("make worker: it has no root directory")
	}
	if cfg.Snapshotter == "" {
		cfg.Snapshotter = "overlayfs"
	}
	if cfg.Executor.Namespace == "" {
		cfg.Executor.Namespace = executor.DefaultNamespace
	}
	if cfg.RegistryHosts == nil {
		cfg.RegistryHosts = resolver.NewRegistryConfig(nil)
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("make worker: %w", err)
	}
	opt, err := store(c, cfg)
	if err != nil {
		return nil, fmt.Errorf("make worker: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, opt.MetadataStore.Close())
		}
	}()
	if opt.ID, err = base.ID(cfg.Root); err != nil {
		return nil, fmt.Errorf("make worker: %w", err)
	}
	mode, err := networks(&cfg)
	if err != nil {
		return nil, fmt.Errorf("make worker: networks: %w", err)
	}
	w := &Worker{}
	if w.steps, err = executor.New(c, cfg.Executor); err != nil {
		return nil, err
	}
	if opt.Labels, err = labels(ctx, c, cfg, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("make worker: %w", err), w.steps.Close())
	}
	opt.Executor, opt.NetworkProviders, opt.ProxyProvider = w.steps, cfg.Executor.Networks, cfg.Executor.Proxy
	opt.CDIManager = cfg.Executor.CDI
	if w.Worker, err = base.NewWorker(ctx, opt); err != nil {
		return nil, errors.Join(fmt.Errorf("make worker: %w", err), w.steps.Close())
	}
	return w, nil
}

// Close closes the worker, its executor and its networks. No step may run.
func (w *Worker) Close() error {
	return errors.Join(w.steps.Close(), w.Worker.Close())
}

// networks makes the network providers that the executor has not got.
func networks(cfg *Config) (mode string, err error) {
	if cfg.Executor.Networks != nil {
		return "custom", nil
	}
	if cfg.Network.CNI.Root == "" {
		cfg.Network.CNI.Root = cfg.Root
	}
	cfg.Executor.Networks, cfg.Executor.Proxy, mode, err = netproviders.Providers(cfg.Network)
	return mode, err
}

// store is the part of a worker that keeps content, snapshots and the cache.
func store(c *client.Client, cfg Config) (base.WorkerOpt, error) {
	ns := cfg.Executor.Namespace
	records, err := metadata.NewStore(filepath.Join(cfg.Root, "metadata_v2.db"))
	if err != nil {
		return base.WorkerOpt{}, err
	}
	lm := leaseutil.WithNamespace(c.LeasesService(), ns)
	content := containerd.NewContentStore(c.ContentStore(), ns)
	differ := namespacedDiff{c.DiffService(), ns}
	opt := base.WorkerOpt{
		Root:          cfg.Root,
		Platforms:     cfg.Platforms,
		GCPolicy:      cfg.GC,
		Snapshotter:   containerd.NewSnapshotter(cfg.Snapshotter, c.SnapshotService(cfg.Snapshotter), ns, nil),
		ContentStore:  content,
		Applier:       winlayers.NewFileSystemApplierWithWindows(content, differ),
		Differ:        winlayers.NewWalkingDiffWithWindows(content, differ),
		ImageStore:    namespacedImages{c.ImageService(), ns},
		RegistryHosts: cfg.RegistryHosts,
		LeaseManager:  lm,
		// The deletion of a lease that waits is a collection of garbage.
		GarbageCollect: func(ctx context.Context) (gc.Stats, error) {
			l, err := lm.Create(ctx, leases.WithRandomID())
			if err != nil {
				return nil, err
			}
			return nil, lm.Delete(ctx, leases.Lease{ID: l.ID}, leases.SynchronousDelete)
		},
		MetadataStore: records,
		MountPoolRoot: filepath.Join(cfg.Root, "cachemounts"),
	}
	if opt.Platforms == nil {
		opt.Platforms = []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}
	}
	if cfg.MaxSteps > 0 {
		opt.ParallelismSem = semaphore.NewWeighted(cfg.MaxSteps)
	}
	if opt.ResourceMonitor, err = resources.NewMonitor(); err != nil {
		return opt, errors.Join(err, records.Close())
	}
	return opt, nil
}

// labels tell what the worker is, under BuildKit's names.
func labels(ctx context.Context, c *client.Client, cfg Config, mode string) (map[string]string, error) {
	server, err := c.IntrospectionService().Server(ctx)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	all := map[string]string{
		label.Executor:            "berth",
		label.Snapshotter:         cfg.Snapshotter,
		label.Hostname:            hostname,
		label.Network:             mode,
		label.SELinuxEnabled:      strconv.FormatBool(cfg.Executor.SELinux),
		label.ContainerdNamespace: cfg.Executor.Namespace,
		label.ContainerdUUID:      server.UUID,
	}
	if p := cfg.Executor.AppArmorProfile; p != "" {
		all[label.ApparmorProfile] = p
	}
	maps.Copy(all, cfg.Labels)
	return all, nil
}
