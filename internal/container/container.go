package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/task"
)

// Container is one container of a Set: a task.Task.
type Container struct {
	*process // the init process, same as init

	set     *Set
	id      task.ID
	bundle  string
	options Options
	runtime *ociruntime.Runtime
	log     *slog.Logger
	init    *process
	// sharedPID, checkpoint and waiting (see record) are set before the
	// container is shared.
	sharedPID  bool
	checkpoint string
	waiting    string

	// ops is held during a runtime call that changes the whole container. Exits,
	// signals, State and Wait do not take it; execs start without it.
	ops chan struct{}
	// saveMu orders writes of the record.
	saveMu  sync.Mutex
	savedOp string // the call that the record says is under way, guarded by saveMu
	// oomMu is held while a kill for memory is stored and told, and while the exit
	// of init is stored: who tells the one must not tell the other too early.
	oomMu sync.Mutex

	mu          sync.Mutex
	pausing     bool                // a pause call is under way, guarded by mu
	ended       bool                // init has ended, guarded by mu
	deleteTold  bool                // guarded by mu
	startReader *os.File            // see startfifo.go; nil: no start is unfinished. Guarded by mu
	execs       map[string]*process // guarded by mu
	liveExecs   int                 // running or being started, guarded by mu
	execsGone   chan struct{}       // closed when liveExecs falls to 0, guarded by mu
	cgroup      *cgroup.Cgroup      // nil: none of its own; set before the process can exit
	cgroupPaths cgroup.Paths        // guarded by mu
	oomKills    uint64              // kills for memory that were told, guarded by mu
}

var _ task.Task = (*Container)(nil)

func (s *Set) newContainer(id task.ID, bundle string, o Options) *Container {
	c := &Container{
		set: s, id: id, bundle: bundle, options: o, runtime: s.runtime(id, bundle, o),
		log: s.cfg.Log.With("namespace", id.Namespace, "container", id.Container),
		ops: make(chan struct{}, 1), execs: map[string]*process{},
	}
	if open := s.cfg.OpenFIFO; open != nil {
		c.runtime.OpenFIFO = func(fifo int) (int, error) { return open(c.startFIFO(), fifo) }
	}
	return c
}

// ID implements task.Task.
func (c *Container) ID() task.ID { return c.id }

func isNotFound(err error) bool { return errors.Is(err, errdefs.ErrNotFound) }

// lockOps waits for its turn among the calls that change the container.
func (c *Container) lockOps(ctx context.Context) (unlock func(), err error) {
	select {
	case c.ops <- struct{}{}:
		return func() { <-c.ops }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("container %q is busy with another call: %w", c.id.Container, ctx.Err())
	}
}

// change runs a call that leads init from one state to another: allowed by the
// table, its intent on disk before, its result after, then told with the event
// that told makes (nil: none). What was begun is finished even if the caller
// has gone.
func (c *Container) change(ctx context.Context, op task.Operation, told func() task.Event, fn func(context.Context) error) error {
	unlock, err := c.lockOps(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.init.check(op); err != nil {
		return err
	}
	if err := c.save(op, true); err != nil {
		return err
	}
	release := c.set.cfg.Reaper.Hold()
	err = fn(context.WithoutCancel(ctx))
	release()
	if err == nil {
		c.mu.Lock()
		// An exit that came meanwhile stays the last word.
		next, terr := c.init.allowed(op)
		if terr == nil {
			c.init.status = next
		}
		// A checkpoint may end the container.
		if told != nil && (terr == nil || op == task.OpCheckpoint) {
			c.init.owe(told())
		}
		c.mu.Unlock()
	}
	err = errors.Join(err, c.save(op, false))
	c.init.pay()
	return err
}

// event makes one that says no more than its kind.
func event(kind task.EventKind) func() task.Event {
	return func() task.Event { return task.Event{Kind: kind} }
}

// Start runs the container's program.
func (c *Container) Start(ctx context.Context) (uint32, error) {
	defer c.init.ready()
	started := func() task.Event { return task.Event{Kind: task.EventStart, Pid: uint32(c.init.pid)} }
	err := c.change(ctx, task.OpStart, started, func(ctx context.Context) error {
		c.mu.Lock()
		c.init.busy = true
		c.mu.Unlock()
		if c.checkpoint != "" {
			return c.restore(ctx)
		}
		return c.runtime.Start(ctx, c.id.Container)
	})
	if err != nil {
		return 0, fmt.Errorf("start container %q: %w", c.id.Container, err)
	}
	c.dropStartFIFO()
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint32(c.init.pid), nil
}

// Kill sends the signal to init. With all it goes to every process of the
// container, execs included: to its cgroup, or where it has none of its own,
// to init and each exec.
func (c *Container) Kill(_ context.Context, sig syscall.Signal, all bool) error {
	if sig < 0 || sig > 64 {
		return fmt.Errorf("signal %d: %w", sig, errdefs.ErrInvalidArgument)
	}
	if err := c.init.check(task.OpKill); err != nil {
		return err
	}
	c.mu.Lock()
	paused := c.init.status == task.Paused
	cg := c.cgroup
	c.mu.Unlock()
	var err error
	switch {
	case !all:
		err = c.init.signal(sig)
	case cg != nil && paused && sig != unix.SIGKILL:
		err = cg.Signal(sig)
	case cg != nil:
		err = cg.Kill(sig)
	default:
		err = c.signalEach(sig)
	}
	if err == nil && paused && sig == unix.SIGKILL && cg != nil {
		// A frozen v1 cgroup keeps even SIGKILL from being delivered.
		if terr := cg.Thaw(); terr != nil && !isNotFound(terr) {
			err = fmt.Errorf("thaw container %q so that it can end: %w", c.id.Container, terr)
		}
	}
	return err
}

func (c *Container) signalEach(sig syscall.Signal) error {
	c.mu.Lock()
	list := []*process{c.init}
	for _, p := range c.execs {
		if p.status == task.Running {
			list = append(list, p)
		}
	}
	c.mu.Unlock()
	err := list[0].signal(sig)
	for _, p := range list[1:] {
		if perr := p.signal(sig); perr != nil && !isNotFound(perr) {
			err = errors.Join(err, perr)
		}
	}
	return err
}

// Pause freezes the container.
func (c *Container) Pause(ctx context.Context) error {
	err := c.change(ctx, task.OpPause, event(task.EventPaused), func(ctx context.Context) error {
		c.setPausing(true)
		return c.runtime.Pause(ctx, c.id.Container)
	})
	c.setPausing(false)
	if err != nil {
		return fmt.Errorf("pause container %q: %w", c.id.Container, err)
	}
	return nil
}

func (c *Container) setPausing(on bool) {
	c.mu.Lock()
	c.pausing = on
	c.mu.Unlock()
}

// Resume thaws the container.
func (c *Container) Resume(ctx context.Context) error {
	err := c.change(ctx, task.OpResume, event(task.EventResumed), func(ctx context.Context) error {
		return c.runtime.Resume(ctx, c.id.Container)
	})
	if err != nil {
		return fmt.Errorf("resume container %q: %w", c.id.Container, err)
	}
	return nil
}

// Update changes the container's limits; annotations are not used by any
// OCI runtime, and are refused rather than dropped.
func (c *Container) Update(ctx context.Context, resources task.Any, annotations map[string]string) error {
	if len(annotations) > 0 {
		return fmt.Errorf("update container %q: annotations cannot be changed: %w", c.id.Container, errdefs.ErrInvalidArgument)
	}
	err := c.change(ctx, task.OpUpdate, nil, func(ctx context.Context) error {
		return c.runtime.Update(ctx, c.id.Container, resources.Value)
	})
	if err != nil {
		return fmt.Errorf("update container %q: %w", c.id.Container, err)
	}
	return nil
}

// Pids lists the processes of the container.
func (c *Container) Pids(context.Context) ([]task.ProcessInfo, error) {
	c.mu.Lock()
	if _, err := c.init.allowed(task.OpPids); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	cg := c.cgroup
	execOf := map[int]string{}
	pids := []int{c.init.pid}
	for id, p := range c.execs {
		if p.status == task.Running {
			execOf[p.pid] = id
			pids = append(pids, p.pid)
		}
	}
	c.mu.Unlock()
	if cg != nil {
		var err error
		if pids, err = cg.Pids(); err != nil {
			return nil, fmt.Errorf("processes of container %q: %w", c.id.Container, err)
		}
	}
	infos := make([]task.ProcessInfo, 0, len(pids))
	for _, pid := range pids {
		infos = append(infos, task.ProcessInfo{Pid: uint32(pid), ExecID: execOf[pid]})
	}
	return infos, nil
}

// Stats implements task.Task.
func (c *Container) Stats(context.Context) (task.Any, error) {
	c.mu.Lock()
	_, err := c.init.allowed(task.OpStats)
	cg := c.cgroup
	c.mu.Unlock()
	if err != nil {
		return task.Any{}, err
	}
	if cg == nil {
		return task.Any{}, fmt.Errorf("statistics of container %q: it has no cgroup of its own: %w", c.id.Container, errdefs.ErrNotFound)
	}
	stats, err := cg.Stats()
	if err != nil {
		return task.Any{}, fmt.Errorf("statistics of container %q: %w", c.id.Container, err)
	}
	return stats, nil
}
