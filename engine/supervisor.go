package engine

import (
	"context"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/berthd/berth/internal/events"
	"github.com/berthd/berth/internal/supervisor"
	"github.com/berthd/berth/internal/version"
)

// openSupervisor makes the runtime that runs containers in shims.
func openSupervisor(ctx context.Context, cfg Config, mounts mount.Manager, exchange *events.Exchange) (runtime, error) {
	s, err := supervisor.Open(ctx, supervisor.Config{
		Root:         cfg.Root,
		State:        cfg.State,
		Address:      cfg.Address,
		TTRPCAddress: cfg.ttrpcAddress(),
		Binary:       cfg.PublishBinary,
		ShimBinary:   cfg.ShimBinary,
		OwnRuntimes:  cfg.OwnRuntimes,
		Sharing:      cfg.Sharing,
		SocketDir:    cfg.SocketDir,
		Linger:       cfg.Linger,
		Debug:        cfg.DebugShims,
		Version:      version.Get().Version,
		SpecCheck:    cfg.SpecCheck,
		Publisher:    exchange,
		Mounts:       mounts,
		Log:          cfg.Log,
	})
	if err != nil {
		return nil, err // and not a nil *Supervisor in a non-nil interface
	}
	return s, nil
}
