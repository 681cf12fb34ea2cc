package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
)

// measureRestart times a daemon's start, after kill -9, until it lists all
// tasks.
func (l *lab) measureRestart(ctx context.Context) ([]figure, error) {
	return l.withDrivers(ctx, func(drivers []*driver) ([]figure, error) { return l.timeRestarts(ctx, drivers) })
}

func (l *lab) timeRestarts(ctx context.Context, drivers []*driver) (_ []figure, err error) {
	n := l.opts.containers
	var variants []variant
	for _, d := range drivers {
		_, remove, err := d.start(ctx, "restart", n)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		variants = append(variants, variant{"client on " + d.engine.name, func(ctx context.Context, _ int) (time.Duration, error) {
			return d.restart(ctx, n)
		}})
	}
	return l.interleave(ctx, fmt.Sprintf("daemon restart, %d tasks", n), min(l.opts.rounds, slowRounds), variants)
}

// restart kills the daemon, starts it and waits until it lists n tasks.
func (d *driver) restart(ctx context.Context, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, d.engine.namespace), commandLimit)
	defer cancel()
	if err := d.engine.kill(); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := d.engine.start(); err != nil {
		return 0, err
	}
	for {
		count, err := d.tasks(ctx)
		switch {
		case err == nil && count == n:
			return time.Since(begin), nil
		case ctx.Err() != nil:
			return 0, fmt.Errorf("%s lists %d of %d tasks: %w: %s", d.engine.name, count, n, err, d.engine.log())
		}
		time.Sleep(time.Millisecond)
	}
}

// tasks is the number of tasks that the daemon lists; it waits for a daemon.
func (d *driver) tasks(ctx context.Context) (int, error) {
	r, err := d.client.TaskService().List(ctx, &tasksapi.ListTasksRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return 0, err
	}
	return len(r.Tasks), nil
}
