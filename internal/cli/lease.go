package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// leaseTime is how long a lease lives that its client did not drop.
const leaseTime = time.Hour

// pendingLease is a lease that is being made.
type pendingLease struct {
	s     *session
	ctx   context.Context
	lease leases.Lease  // the id is ours, so that it can be dropped whatever became of the call
	ready chan struct{} // closed when err is set
	err   error
	// purge collects the garbage before the drop is done.
	purge bool
}

func (s *session) startLease(ctx context.Context) *pendingLease {
	l := &pendingLease{s: s, ctx: ctx, lease: leases.Lease{ID: "berth-" + newID()}, ready: make(chan struct{})}
	s.background.Go(func() {
		defer close(l.ready)
		_, l.err = s.client.LeasesService().Create(ctx, leases.WithID(l.lease.ID), leases.WithExpiration(leaseTime))
	})
	return l
}

// context waits for the lease and puts it into ctx.
func (l *pendingLease) context(ctx context.Context) (context.Context, error) {
	<-l.ready
	if l.err != nil {
		return nil, fmt.Errorf("lease: %w", l.err)
	}
	return leases.WithLease(ctx, l.lease.ID), nil
}

// drop deletes the lease in the background; the session's close waits for it.
func (l *pendingLease) drop() {
	l.s.background.Go(func() {
		<-l.ready
		ctx, cancel := cleanup(l.ctx)
		defer cancel()
		var opts []leases.DeleteOpt
		if l.purge {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := l.s.client.LeasesService().Delete(ctx, l.lease, opts...); err != nil && !errdefs.IsNotFound(err) && l.err == nil {
			l.s.warnf("lease %s: %v (it ends by itself within %v)", l.lease.ID, err, leaseTime)
		}
	})
}
