package container

import (
	"github.com/berthd/berth/task"
)

// checkOOM tells that the kernel has killed processes of the container for memory
// since it was told last. Kills that are found together are one event. What comes
// while init is created or started, or with its end, is told before its exit: see
// storeExit.
func (c *Container) checkOOM() {
	c.mu.Lock()
	cg := c.cgroup
	c.mu.Unlock()
	if cg == nil {
		return
	}
	kills := c.set.oom.Kills(cg)
	c.oomMu.Lock()
	defer c.oomMu.Unlock()
	c.mu.Lock()
	if kills <= c.oomKills || c.init.busy || c.ended || c.init.exit != nil {
		c.mu.Unlock()
		return
	}
	c.oomKills = kills
	c.init.owe(task.Event{Kind: task.EventOOM, Pid: uint32(c.init.pid)})
	c.mu.Unlock()
	if err := c.saveAgain(); err != nil {
		c.log.Warn("an oom event may be told twice, or not, if the shim is killed now", "error", err)
	}
	c.init.pay()
}

// watchOOM begins to look for kills, and looks once: there may have been one.
func (c *Container) watchOOM() {
	c.mu.Lock()
	cg := c.cgroup
	c.mu.Unlock()
	if cg == nil {
		return
	}
	if err := c.set.oom.Add(cg, c.checkOOM); err != nil {
		if !isNotFound(err) {
			c.log.Warn("kills for memory are told with the exit alone", "error", err)
		}
		return
	}
	c.checkOOM()
}

// unwatchOOM may be called more than once.
func (c *Container) unwatchOOM() {
	c.mu.Lock()
	cg := c.cgroup
	c.mu.Unlock()
	if cg != nil {
		c.set.oom.Remove(cg)
	}
}
