package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// parallelTasks are started parallelism at a time in the row parallel.
	parallelTasks = 100
	parallelism   = 8
	// slowRounds bounds the rounds of rows that start many containers in each.
	slowRounds = 5
)

// driver is a connection of containerd's Go client. A daemon that comes back is
// seen within milliseconds.
type driver struct {
	engine *engine
	client *containerd.Client
	image  containerd.Image
}

func (e *engine) driver(ctx context.Context) (*driver, error) {
	retry := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1, MaxDelay: 2 * time.Millisecond},
		MinConnectTimeout: time.Second,
	}
	conn, err := grpc.NewClient("unix://"+e.address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry))
	if err != nil {
		return nil, err
	}
	client, err := containerd.NewWithConn(conn, containerd.WithDefaultNamespace(e.namespace))
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d := &driver{engine: e, client: client}
	if d.image, err = client.GetImage(namespaces.WithNamespace(ctx, e.namespace), image); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return d, nil
}

// container makes a container with a snapshot of the image.
func (d *driver) container(ctx context.Context, id string, args ...string) (containerd.Container, error) {
	return d.client.NewContainer(ctx, id, containerd.WithImage(d.image), containerd.WithNewSnapshot(id, d.image),
		containerd.WithNewSpec(oci.WithImageConfig(d.image), oci.WithProcessArgs(args...)))
}

// life runs a container whose record and snapshot are there: create, start,
// wait, delete of its task.
func (d *driver) life(ctx context.Context, id string) (_ time.Duration, err error) {
	ctx = namespaces.WithNamespace(ctx, d.engine.namespace)
	c, err := d.container(ctx, id, "true")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Delete(ctx, containerd.WithSnapshotCleanup)) }()
	begin := time.Now()
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return 0, err
	}
	exits, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		return 0, err
	}
	exit := <-exits
	if code, _, err := exit.Result(); err != nil || code != 0 {
		return 0, fmt.Errorf("%s ended with %d: %w", id, code, err)
	}
	if _, err := task.Delete(ctx); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// start makes and starts n idle containers, some at a time, and returns what
// removes them.
func (d *driver) start(ctx context.Context, prefix string, n int) (time.Duration, func() error, error) {
	remove := func() error {
		// Not with the bench's context: what is to be removed has to go.
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.engine.namespace), commandLimit)
		defer cancel()
		return atOnce(n, func(i int) error {
			c, err := d.client.LoadContainer(ctx, fmt.Sprintf("%s-%d", prefix, i))
			if err != nil {
				return err
			}
			task, err := c.Task(ctx, nil)
			if err == nil {
				_, err = task.Delete(ctx, containerd.WithProcessKill)
			}
			return errors.Join(err, c.Delete(ctx, containerd.WithSnapshotCleanup))
		})
	}
	ctx = namespaces.WithNamespace(ctx, d.engine.namespace)
	begin := time.Now()
	err := atOnce(n, func(i int) error {
		c, err := d.container(ctx, fmt.Sprintf("%s-%d", prefix, i), "sleep", "100000")
		if err != nil {
			return err
		}
		task, err := c.NewTask(ctx, cio.NullIO)
		if err != nil {
			return err
		}
		return task.Start(ctx)
	})
	took := time.Since(begin)
	if err != nil {
		return 0, nil, errors.Join(err, remove())
	}
	return took, remove, nil
}

// atOnce calls fn for 0 to n-1, parallelism at a time, and stops at an error.
func atOnce(n int, fn func(i int) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, parallelism)
	for worker := range parallelism {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := fn(i); err != nil {
					errs[worker] = err
					next.Store(int64(n))
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// withDrivers connects to each engine while fn measures.
func (l *lab) withDrivers(ctx context.Context, fn func([]*driver) ([]figure, error)) (_ []figure, err error) {
	var all []*driver
	for _, e := range l.engines {
		d, derr := e.driver(ctx)
		if derr != nil {
			return nil, derr
		}
		defer func() { err = errors.Join(err, d.client.Close()) }()
		all = append(all, d)
	}
	return fn(all)
}

// measureAPI times a task's life through the API, beside a run of the bare
// runtime.
func (l *lab) measureAPI(ctx context.Context) ([]figure, error) {
	return l.withDrivers(ctx, func(drivers []*driver) ([]figure, error) { return l.timeLives(ctx, drivers) })
}

func (l *lab) timeLives(ctx context.Context, drivers []*driver) ([]figure, error) {
	var variants []variant
	for _, d := range drivers {
		variants = append(variants, variant{"client on " + d.engine.name, func(ctx context.Context, n int) (time.Duration, error) {
			return d.life(ctx, fmt.Sprintf("api%d", n))
		}})
	}
	variants = append(variants, variant{"bare runc", func(ctx context.Context, n int) (time.Duration, error) {
		return l.bare(ctx, "run", "--bundle", l.bundle, fmt.Sprintf("api%d", n)).time()
	}})
	return l.interleave(ctx, "create+start+wait+delete", l.opts.rounds, variants)
}

// measureParallel tells how many containers a second an engine starts.
func (l *lab) measureParallel(ctx context.Context) ([]figure, error) {
	return l.withDrivers(ctx, func(drivers []*driver) ([]figure, error) { return l.timeStarts(ctx, drivers) })
}

func (l *lab) timeStarts(ctx context.Context, drivers []*driver) ([]figure, error) {
	var variants []variant
	for _, d := range drivers {
		variants = append(variants, variant{"client on " + d.engine.name, func(ctx context.Context, n int) (time.Duration, error) {
			took, remove, err := d.start(ctx, fmt.Sprintf("p%d", n), parallelTasks)
			if err != nil {
				return 0, err
			}
			return took, remove()
		}})
	}
	figures, err := l.interleave(ctx, fmt.Sprintf("%d started, %d at a time", parallelTasks, parallelism), min(l.opts.rounds, slowRounds), variants)
	for i, f := range figures {
		rate := func(ms float64) float64 { return parallelTasks / ms * 1000 }
		figures[i].Unit, figures[i].Value, figures[i].Min, figures[i].Max = "a second", rate(f.Value), rate(f.Max), rate(f.Min)
	}
	return figures, err
}
