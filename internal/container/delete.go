package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/task"
)

// Delete removes the container: from the runtime, its mounts, its streams and
// what a successor would find. The bundle stays; whoever made it removes it.
func (c *Container) Delete(ctx context.Context) (task.Exit, error) {
	return c.init.delete(ctx, c.runDelete)
}

func (c *Container) runDelete(ctx context.Context) (task.Exit, error) {
	unlock, err := c.lockOps(ctx)
	if err != nil {
		return task.Exit{}, err
	}
	defer unlock()
	if err := c.init.check(task.OpDelete); err != nil {
		return task.Exit{}, err
	}
	if err := c.endForDelete(ctx); err != nil {
		return task.Exit{}, err
	}
	release := c.set.cfg.Reaper.Hold()
	err = c.deleteFromRuntime(ctx)
	release()
	if err != nil {
		return task.Exit{}, fmt.Errorf("delete container %q: %w", c.id.Container, err)
	}
	c.dropExecs(ctx)
	c.dropStartFIFO()
	if c.init.streams != nil {
		if err := closeStreams(ctx, c.init.streams); err != nil {
			c.log.Warn("close stdio", "error", err)
		}
	}
	if err := mount.Unmount(c.bundle); err != nil {
		return task.Exit{}, fmt.Errorf("delete container %q: %w", c.id.Container, err)
	}
	exit := c.tellDelete()
	if err := c.forgetFiles(); err != nil {
		return task.Exit{}, fmt.Errorf("delete container %q: %w", c.id.Container, err)
	}
	c.mu.Lock()
	c.init.status = task.Deleted
	c.mu.Unlock()
	c.unwatchOOM()
	c.set.remove(c.id)
	return exit, nil
}

// endForDelete ends an init process that was created and not started, and
// waits until its exit is published: the delete event comes last.
func (c *Container) endForDelete(ctx context.Context) error {
	c.mu.Lock()
	created := c.init.status == task.Created
	restorable := c.init.status == task.CreatedCheckpoint
	c.mu.Unlock()
	if restorable {
		return nil
	}
	if created {
		if err := c.init.signal(unix.SIGKILL); err != nil && !isNotFound(err) {
			return fmt.Errorf("delete container %q: %w", c.id.Container, err)
		}
	}
	if !c.init.waitDone(ctx, killGrace) {
		return fmt.Errorf("delete container %q: its process %d has not ended: %w", c.id.Container, c.init.pid, errdefs.ErrUnavailable)
	}
	return nil
}

// deleteFromRuntime is content when the runtime knows the container no more.
// Plain delete first: runc sleeps 100 ms with --force, even if all has ended.
func (c *Container) deleteFromRuntime(ctx context.Context) error {
	err := c.runtime.Delete(ctx, c.id.Container, false)
	if err == nil || isNotFound(err) {
		return nil
	}
	if ferr := c.runtime.Delete(ctx, c.id.Container, true); ferr != nil && !isNotFound(ferr) {
		return errors.Join(err, ferr)
	}
	return nil
}

// dropExecs forgets the execs that nobody has deleted.
func (c *Container) dropExecs(ctx context.Context) {
	c.mu.Lock()
	list := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		list = append(list, p)
	}
	c.mu.Unlock()
	for _, p := range list {
		if _, err := p.Delete(ctx); err != nil && !isNotFound(err) {
			c.log.Warn("forget an exec with its container", "exec", p.id, "error", err)
		}
	}
}

// tellDelete publishes the end of the container, once: only its files are left
// to remove, and a successor that finds them removes them.
func (c *Container) tellDelete() task.Exit {
	c.mu.Lock()
	p := c.init
	if p.exit == nil { // a restore that was never started
		p.exit = &task.Exit{Status: 255, At: time.Now(), Reason: "the container was never started"}
		close(p.done)
	}
	exit, told := *p.exit, c.deleteTold
	if !told {
		p.owe(task.Event{Kind: task.EventDelete, Pid: exit.Pid, Exit: exit})
		c.deleteTold = true
	}
	c.mu.Unlock()
	if told {
		return exit
	}
	if err := c.save(task.OpDelete, true); err != nil {
		c.log.Warn("a delete event may be told twice, or not, if the shim is killed now", "error", err)
	}
	p.pay()
	return exit
}
