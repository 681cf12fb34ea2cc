package container

import (
	"context"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/task"
)

// exited is called by the reaper and must not block.
func (p *process) exited(_ *reap.Process, e reap.Exit) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.busy {
		p.held = &e
		return
	}
	c.set.wg.Go(func() { p.finish(e) })
}

// ready ends the time in which exits are held. The caller has emitted the
// event of the create or start, and does not hold c.mu.
func (p *process) ready() {
	c := p.c
	c.mu.Lock()
	p.busy = false
	e := p.held
	p.held = nil
	c.mu.Unlock()
	if p.kind == task.Init {
		c.watchOOM()
	}
	if e != nil {
		c.set.wg.Go(func() { p.finish(*e) })
	}
}

func (p *process) finish(e reap.Exit) {
	p.c.mu.Lock()
	streams := p.streams
	p.c.mu.Unlock()
	if streams != nil {
		streams.Exited()
	}
	exit := task.Exit{Pid: uint32(e.Pid), Status: uint32(e.Status), At: e.At, Reason: e.Reason}
	if p.kind == task.Init {
		p.c.finishInit(exit)
		return
	}
	p.finishExec(exit)
}

// finishExec: stored, published, then Wait returns.
func (p *process) finishExec(exit task.Exit) {
	c := p.c
	c.mu.Lock()
	next, err := p.allowed(task.OpExited)
	if err != nil {
		c.mu.Unlock()
		p.reaped()
		return
	}
	p.status, p.exit = next, &exit
	p.owe(task.Event{Kind: task.EventExit, Pid: exit.Pid, Exit: exit})
	c.mu.Unlock()
	if err := p.saveExec(""); err != nil {
		c.log.Error("store the exit of an exec", "exec", p.id, "error", err)
	}
	p.reaped()
	c.mu.Lock()
	p.payLocked()
	close(p.done)
	c.liveExecsLocked(-1)
	c.mu.Unlock()
}

// liveExecsLocked counts the execs that run or are being started. The caller
// holds c.mu.
func (c *Container) liveExecsLocked(n int) {
	c.liveExecs += n
	if c.liveExecs == 0 && c.execsGone != nil {
		close(c.execsGone)
		c.execsGone = nil
	}
}

// finishInit waits for the execs, whose exits come first, then stores and
// publishes the exit of the container.
func (c *Container) finishInit(exit task.Exit) {
	// Early, because systemd removes the cgroup of a scope once it is empty.
	var oomKills uint64
	if c.cgroup != nil {
		oomKills = c.set.oom.Kills(c.cgroup)
	}
	c.mu.Lock()
	c.ended = true // no exec starts any more
	var gone chan struct{}
	if c.liveExecs > 0 {
		gone = make(chan struct{})
		c.execsGone = gone
	}
	c.mu.Unlock()

	if c.sharedPID && c.cgroup != nil {
		// Nothing else ends what init leaves behind.
		if err := c.cgroup.Kill(unix.SIGKILL); err != nil && !isNotFound(err) {
			c.log.Warn("end the processes that init left", "error", err)
		}
	}
	if gone != nil {
		timeout := time.NewTimer(execGrace)
		select {
		case <-gone:
		case <-timeout.C:
			c.log.Warn("execs outlive the init process", "grace", execGrace.String())
		}
		timeout.Stop()
	}
	if c.cgroup != nil {
		oomKills = max(oomKills, c.set.oom.Kills(c.cgroup))
	}
	c.storeExit(exit, oomKills)
	c.unwatchOOM() // before the removal of the cgroup, which v1 tells too
	c.init.reaped()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init.payLocked()
	close(c.init.done)
}

// reaped lets the zombie go: until its exit is stored it is the only witness.
func (p *process) reaped() {
	p.c.mu.Lock()
	watch := p.watch
	p.c.mu.Unlock()
	if watch != nil {
		watch.Done()
	}
}

// storeExit owes the exit, and before it the kills for memory that nobody was
// told of. systemd may have removed the cgroup with its counter: then those count
// that were told.
func (c *Container) storeExit(exit task.Exit, oomKills uint64) {
	c.wasStarted()
	c.oomMu.Lock()
	defer c.oomMu.Unlock()
	c.mu.Lock()
	exit.OOMKilled = max(oomKills, c.oomKills) > 0
	if next, err := c.init.allowed(task.OpExited); err == nil {
		c.init.status, c.init.exit = next, &exit
	}
	if oomKills > c.oomKills {
		c.oomKills = oomKills
		c.init.owe(task.Event{Kind: task.EventOOM, Pid: exit.Pid})
	}
	c.init.owe(task.Event{Kind: task.EventExit, Pid: exit.Pid, Exit: exit})
	c.mu.Unlock()
	err := writeFile(filepath.Join(c.bundle, exitFile), exitRecord{
		Timestamp: exit.At, Pid: int(exit.Pid), Status: int(exit.Status), OOMKilled: exit.OOMKilled, Reason: exit.Reason,
	})
	if err != nil {
		c.log.Error("store the exit", "error", err)
	}
	if err := c.save(task.OpExited, false); err != nil {
		c.log.Error("store the exit", "error", err)
	}
}

// waitDone waits for the exit of a process for at most d.
func (p *process) waitDone(ctx context.Context, d time.Duration) bool {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case <-p.done:
		return true
	case <-timeout.C:
	case <-ctx.Done():
	}
	return false
}
