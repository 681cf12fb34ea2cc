package container

import (
	"context"
	"time"

	"github.com/berthd/berth/task"
)

// A start with runc lets init go by opening the FIFO that init waits at, and
// init ends if it has no reader when it writes to it. Under a guard that reader
// is the guard's, from the start until that is stored: a shim that is killed in
// between leaves a container that is running, or will be at once.

// startFIFO is the name of that reader.
func (c *Container) startFIFO() string { return c.id.Namespace + "/" + c.id.Container + "/start" }

func (c *Container) dropStartFIFO() {
	if c.set.cfg.OpenFIFO != nil {
		c.set.cfg.Keeper.Drop(c.startFIFO())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.startReader != nil {
		c.startReader.Close()
		c.startReader = nil
	}
}

// finishGrace is how long a successor waits for an init that was let go, before
// it serves. One that takes longer is created as yet. Another start, or its end,
// finds that it was let go.
const finishGrace = time.Second

// finishStart goes on with a start of the predecessor. The container is not
// shared yet.
func (c *Container) finishStart(ctx context.Context) bool {
	if c.startReader == nil || c.init.status != task.Created {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, finishGrace)
	defer cancel()
	started, err := c.runtime.FinishStart(ctx, c.id.Container, int(c.startReader.Fd()))
	if err != nil {
		c.log.Warn("finish the start of an earlier shim", "error", err)
	}
	if started {
		c.startedLocked()
	}
	return started
}

// startedLocked says that init runs. The caller holds c.mu, or has c alone.
func (c *Container) startedLocked() {
	c.init.status = task.Running
	c.init.owe(task.Event{Kind: task.EventStart, Pid: uint32(c.init.pid)})
}

// wasStarted is called when init has ended: it may have run although nobody was
// there to see it start.
func (c *Container) wasStarted() {
	c.mu.Lock()
	reader, created := c.startReader, c.init.status == task.Created
	c.mu.Unlock()
	if reader == nil || !created {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), finishGrace)
	defer cancel()
	if started, err := c.runtime.FinishStart(ctx, c.id.Container, int(reader.Fd())); err == nil && started {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.startedLocked()
	}
}
