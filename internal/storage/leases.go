package storage

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
)

// collectingLeases adds the synchronous delete: what only the lease held is
// gone when the call returns.
type collectingLeases struct {
	leases.Manager
	gc *Collector
}

func (l *collectingLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if err := l.Manager.Delete(ctx, lease); err != nil {
		return err
	}
	if !o.Synchronous {
		return nil
	}
	_, err := l.gc.ScheduleAndWait(ctx)
	return err
}

// leaseDeleteTimeout bounds the delete of a lease whose caller has gone.
const leaseDeleteTimeout = 10 * time.Second

// lastingLeases deletes a lease even if the operation that made it was
// cancelled: an image that a client gave up would else hold its layers for a
// day.
type lastingLeases struct {
	leases.Manager
}

func (l lastingLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseDeleteTimeout)
	defer cancel()
	return l.Manager.Delete(ctx, lease, opts...)
}
