package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/internal/stdio"
	"github.com/berthd/berth/task"
)

// Adopt takes up the containers that a predecessor left in Config.Members.
// kept are the fds that it left with the guard, by the names of
// stdio.Config.Name; those that nothing claims are closed and dropped. One
// container that cannot be taken up costs that one: it is logged and left out.
func (s *Set) Adopt(ctx context.Context, kept map[string]*os.File) error {
	defer s.dropUnclaimed(kept)
	if s.cfg.Members == "" {
		return nil
	}
	links, err := os.ReadDir(s.cfg.Members)
	if err != nil {
		return fmt.Errorf("containers of an earlier shim: %w", err)
	}
	for _, l := range links {
		link := filepath.Join(s.cfg.Members, l.Name())
		bundle, err := os.Readlink(link)
		if err == nil {
			err = s.adopt(ctx, bundle, kept)
		}
		if err != nil {
			s.cfg.Log.Error("a container of an earlier shim is lost", "container", l.Name(), "bundle", bundle, "error", err)
			if rerr := remove(link); rerr != nil {
				s.cfg.Log.Error("forget a lost container", "container", l.Name(), "error", rerr)
			}
		}
	}
	return nil
}

func (s *Set) dropUnclaimed(kept map[string]*os.File) {
	for name, f := range kept {
		f.Close()
		if s.cfg.Keeper != nil {
			s.cfg.Keeper.Drop(name)
		}
	}
}

// take moves the fds of one process out of kept, named without the prefix.
func take(kept map[string]*os.File, prefix string) map[string]*os.File {
	own := map[string]*os.File{}
	for name, f := range kept {
		rest, ok := strings.CutPrefix(name, prefix+"/")
		// "ns/id/stdout.r" belongs to init, "ns/id/exec/stdout.r" to an exec.
		if ok && !strings.Contains(rest, "/") {
			own[rest] = f
			delete(kept, name)
		}
	}
	return own
}

func (s *Set) adopt(ctx context.Context, bundle string, kept map[string]*os.File) error {
	var r record
	if err := readFile(filepath.Join(bundle, recordFile), &r); err != nil {
		return err
	}
	c := s.newContainer(r.ID, bundle, r.Options)
	c.sharedPID, c.checkpoint, c.cgroupPaths, c.waiting = r.SharedPID, r.Checkpoint, r.Cgroup, r.Waiting
	c.oomKills = r.OOMKills
	p := c.newProcess(task.Init, "", r.Stdio)
	c.init, c.process = p, p
	p.status, p.pid, p.startTime, p.exit, p.owed = task.ParseStatus(r.Status), r.Pid, r.StartTime, r.Exit, r.Owed
	switch r.Op {
	case task.OpState.String():
		return s.abandon(ctx, c)
	case task.OpDelete.String():
		c.payDebts()
		return c.forgetFiles()
	}
	if p.status == task.CreatedCheckpoint {
		return s.adoptCheckpoint(ctx, c, r.Op != "", kept)
	}
	if c.cgroupPaths != nil {
		if cg, err := cgroup.Load(c.cgroupPaths, s.own); err == nil {
			c.cgroup = cg
		}
	}
	fifo := kept[c.startFIFO()]
	delete(kept, c.startFIFO())
	p.adoptStreams(ctx, kept)
	c.adoptExecs(ctx, kept)
	c.payDebts()
	c.startReader = fifo
	if !c.finishStart(ctx) && r.Op != "" {
		c.askRuntime(ctx)
	}
	s.put(c)
	c.adoptInit()
	err := c.save(0, false)
	p.pay()
	if p.status != task.Created {
		c.dropStartFIFO()
	}
	return err
}

// abandon takes back a create that was begun and not finished. Nobody was told
// of the container.
func (s *Set) abandon(ctx context.Context, c *Container) error {
	release := s.cfg.Reaper.Hold()
	err := c.runtime.Delete(ctx, c.id.Container, true)
	release()
	if isNotFound(err) {
		err = nil
	}
	return errors.Join(err, mount.Unmount(c.bundle), c.forgetFiles())
}

// adoptCheckpoint takes up a container that waits for its restore. One that was
// begun is taken back: its caller was told that it failed.
func (s *Set) adoptCheckpoint(ctx context.Context, c *Container, begun bool, kept map[string]*os.File) error {
	if begun {
		if err := c.undoCreate(ctx); err != nil {
			return err
		}
	}
	// Nothing has run that could have used the streams: they are opened anew.
	cfg := c.init.streamsConfig()
	for _, f := range take(kept, cfg.Name) {
		f.Close()
	}
	streams, err := stdio.Open(ctx, cfg)
	if err != nil {
		return errors.Join(err, s.abandon(ctx, c))
	}
	c.init.streams = streams
	if spec, err := readSpec(c.bundle); err == nil {
		c.init.ownOOMScore = spec.Process != nil && spec.Process.OOMScoreAdj != nil
	}
	c.payDebts()
	s.put(c)
	return c.save(0, false)
}

// askRuntime learns what became of a call that the predecessor had begun. What
// it did is told with the next save.
func (c *Container) askRuntime(ctx context.Context) {
	release := c.set.cfg.Reaper.Hold()
	st, err := c.runtime.State(ctx, c.id.Container)
	release()
	if err != nil {
		c.log.Warn("ask the runtime for the state", "error", err)
		return
	}
	got := task.ParseStatus(st.Status)
	if got == task.Created && c.startedAfterAll() {
		got = task.Running
		c.runtime.Started(c.id.Container)
	}
	before := c.init.status
	switch {
	case before == task.Stopped:
		return
	case got == task.Running && before == task.Created:
		c.startedLocked()
	case got == task.Running && before == task.Paused:
		c.init.owe(task.Event{Kind: task.EventResumed})
	case got == task.Paused && before == task.Running:
		c.init.owe(task.Event{Kind: task.EventPaused})
	case got != before:
		return
	}
	c.init.status = got
}

// startedAfterAll says that init runs its program although the runtime did not
// live to note it: another start would wait for it in vain.
func (c *Container) startedAfterAll() bool {
	program, err := programOf(c.init.pid)
	return err == nil && c.waiting != "" && program != c.waiting
}

func (p *process) adoptStreams(ctx context.Context, kept map[string]*os.File) {
	cfg := p.streamsConfig()
	streams, err := stdio.Adopt(ctx, cfg, take(kept, cfg.Name))
	if err != nil {
		p.c.log.Warn("stdio could not be taken up", "exec", p.id, "error", err)
		return
	}
	p.streams = streams
}

// adoptInit watches the init process, or reports its end where it was not stored.
func (c *Container) adoptInit() {
	p := c.init
	if p.exit != nil {
		c.ended = true
		close(p.done)
		return
	}
	p.rewatch()
}

// rewatch finds the process by pid and start time. The guard keeps the zombie
// of one that has ended.
func (p *process) rewatch() {
	c := p.c
	if a := c.set.cfg.Ancestor; a != nil {
		if err := a.Claim(p.pid); err != nil {
			c.log.Warn("claim a process from the guard", "pid", p.pid, "error", err)
		}
	}
	p.busy = true // until all of the container is taken up
	w, err := c.set.cfg.Reaper.Watch(p.pid, p.startTime, p.exited)
	if err != nil {
		p.held = &reap.Exit{
			Pid: p.pid, Status: reap.Unknown, At: time.Now(),
			Reason: "the process ended while nobody watched it: " + err.Error(),
		}
	} else {
		c.mu.Lock()
		p.watch = w
		c.mu.Unlock()
	}
	c.set.adopted = append(c.set.adopted, p)
}

// Release lets the exits of adopted processes be reported. Call it after
// Adopt, when events can be taken.
func (s *Set) Release() {
	for _, p := range s.adopted {
		p.ready()
	}
	s.adopted = nil
}

func (c *Container) adoptExecs(ctx context.Context, kept map[string]*os.File) {
	files, err := os.ReadDir(filepath.Join(c.bundle, execDir))
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.log.Error("execs of an earlier shim", "error", err)
		}
		return
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		var r execRecord
		if err := readFile(filepath.Join(c.bundle, execDir, f.Name()), &r); err != nil || r.ID != name {
			c.log.Error("an exec of an earlier shim is lost", "exec", name, "error", err)
			continue
		}
		c.adoptExec(ctx, r, kept)
	}
}

func (c *Container) adoptExec(ctx context.Context, r execRecord, kept map[string]*os.File) {
	p := c.newProcess(task.Exec, r.ID, r.Stdio)
	p.status, p.pid, p.startTime, p.exit, p.owed = task.ParseStatus(r.Status), r.Pid, r.StartTime, r.Exit, r.Owed
	c.execs[r.ID] = p
	switch {
	case r.Op == task.OpStart.String():
		c.abandonExecStart(p)
	case p.status == task.Stopped:
		p.adoptStreams(ctx, kept)
		close(p.done)
	case p.status == task.Running:
		p.adoptStreams(ctx, kept)
		c.liveExecs++
		p.rewatch()
	}
}

// abandonExecStart ends an exec whose start the predecessor did not live to
// report: its caller was told that the start failed.
func (c *Container) abandonExecStart(p *process) {
	if pid, err := readPid(p.pidPath()); err == nil {
		if w, err := c.set.cfg.Reaper.Watch(pid, 0, func(w *reap.Process, _ reap.Exit) { w.Done() }); err == nil {
			// The pid file may be old: only what is in the container is ended.
			if c.holds(pid) {
				if err := w.Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					c.log.Warn("end an exec that was being started", "exec", p.id, "error", err)
				}
			} else {
				w.Forget()
			}
		}
	}
	p.status = task.Stopped
	p.exit = &task.Exit{Status: reap.Unknown, At: time.Now(), Reason: "the shim died while it started the process"}
	close(p.done)
}

// holds says that the process is in the container's cgroup.
func (c *Container) holds(pid int) bool {
	if c.cgroup == nil {
		return false
	}
	pids, err := c.cgroup.Pids()
	if err != nil {
		return false
	}
	for _, p := range pids {
		if p == pid {
			return true
		}
	}
	return false
}

func readPid(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var pid int
	if _, err := fmt.Sscanf(string(data), "%d", &pid); err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s: no pid: %w", path, errdefs.ErrDataLoss)
	}
	return pid, nil
}
