package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/internal/stdio"
	"github.com/berthd/berth/task"
)

// Create implements task.Runner. cfg.Bundle holds config.json; cfg.Spec,
// Runtime and the sandbox fields are for those above and are not used.
func (s *Set) Create(ctx context.Context, id task.ID, cfg task.CreateConfig) (task.Task, error) {
	if err := checkConfig(id, cfg); err != nil {
		return nil, err
	}
	options, err := s.cfg.DecodeOptions(cfg.Options)
	if err != nil {
		return nil, fmt.Errorf("create container %q: %w", id.Container, err)
	}
	if err := s.reserve(id); err != nil {
		return nil, err
	}
	s.wg.Add(1)
	defer s.wg.Done()
	c, err := s.create(context.WithoutCancel(ctx), id, cfg, options)
	if err != nil {
		s.remove(id)
		return nil, err
	}
	return c, nil
}

// create works through the steps; undo holds what takes back those done.
func (s *Set) create(ctx context.Context, id task.ID, cfg task.CreateConfig, options Options) (_ *Container, err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	spec, err := readSpec(cfg.Bundle)
	if err != nil {
		return nil, fmt.Errorf("create container %q: %w", id.Container, err)
	}
	c := s.newContainer(id, cfg.Bundle, options)
	c.sharedPID = spec.sharedPID()
	c.checkpoint = cfg.Checkpoint
	io := cfg.Stdio
	if io.Size == (task.ConsoleSize{}) {
		io.Size = spec.Process.size()
	}
	c.init = c.newProcess(task.Init, "", io)
	c.process = c.init
	c.init.ownOOMScore = spec.Process != nil && spec.Process.OOMScoreAdj != nil
	if cfg.Checkpoint != "" {
		c.init.status = task.CreatedCheckpoint
	}
	c.init.busy = true

	// The intent is on disk before anything else exists: a successor that
	// finds it takes back whatever was begun.
	undo = append(undo, c.forgetFiles)
	if err := c.writeIntent(); err != nil {
		return nil, fmt.Errorf("create container %q: %w", id.Container, err)
	}
	undo = append(undo, func() error { return mount.Unmount(c.bundle) })
	if _, err := mount.Rootfs(c.bundle, cfg.Rootfs); err != nil {
		return nil, fmt.Errorf("create container %q: %w", id.Container, err)
	}
	streams, err := stdio.Open(ctx, c.init.streamsConfig())
	if err != nil {
		return nil, fmt.Errorf("create container %q: %w", id.Container, err)
	}
	c.init.streams = streams
	undo = append(undo, func() error { return closeStreams(ctx, streams) })

	if c.checkpoint == "" {
		undo = append(undo, func() error { return c.undoCreate(ctx) })
		if err := c.runCreate(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.tellCreate(cfg); err != nil {
		return nil, fmt.Errorf("create container %q: %w", id.Container, err)
	}
	s.put(c)
	c.init.ready()
	return c, nil
}

// tellCreate stores that the container is made, and publishes it.
func (c *Container) tellCreate(cfg task.CreateConfig) error {
	c.mu.Lock()
	c.init.owe(task.Event{
		Kind: task.EventCreate, Pid: uint32(c.init.pid), Bundle: c.bundle,
		Rootfs: cfg.Rootfs, Stdio: cfg.Stdio, Checkpoint: cfg.Checkpoint,
	})
	c.mu.Unlock()
	if err := c.save(0, false); err != nil {
		return err
	}
	c.init.pay()
	return nil
}

// writeIntent puts down what a successor and a stock `delete` need to clean up.
func (c *Container) writeIntent() error {
	if err := c.save(task.OpState, true); err != nil {
		return err
	}
	if err := c.writeRuntimeFiles(); err != nil {
		return err
	}
	if c.set.cfg.Members == "" {
		return nil
	}
	link := c.memberLink()
	if err := remove(link); err != nil {
		return err
	}
	return os.Symlink(c.bundle, link)
}

// writeRuntimeFiles writes the files of the shim contract that name the OCI runtime.
func (c *Container) writeRuntimeFiles() error {
	if err := writeFile(filepath.Join(c.bundle, "options.json"), runtimeOptionsFile(c.options)); err != nil {
		return err
	}
	return replaceFile(filepath.Join(c.bundle, "runtime"), []byte(c.options.Binary))
}

// runtimeOptionsFile has the member names that stock shims use.
func runtimeOptionsFile(o Options) map[string]any {
	m := map[string]any{}
	set := func(name string, value any, present bool) {
		if present {
			m[name] = value
		}
	}
	set("binary_name", o.Binary, o.Binary != "")
	set("root", o.Root, o.Root != "")
	set("systemd_cgroup", true, o.SystemdCgroup)
	set("no_pivot_root", true, o.NoPivotRoot)
	set("no_new_keyring", true, o.NoNewKeyring)
	set("io_uid", o.IOUID, o.IOUID != 0)
	set("io_gid", o.IOGID, o.IOGID != 0)
	set("criu_image_path", o.CriuImagePath, o.CriuImagePath != "")
	set("criu_work_path", o.CriuWorkPath, o.CriuWorkPath != "")
	return m
}

func (c *Container) memberLink() string {
	return filepath.Join(c.set.cfg.Members, c.id.Container)
}

// forgetFiles takes the container out of a successor's sight.
func (c *Container) forgetFiles() error {
	if c.set.cfg.Members != "" {
		// First: a link to a bundle without a record would be a container lost.
		if err := remove(c.memberLink()); err != nil {
			return err
		}
	}
	return remove(filepath.Join(c.bundle, recordFile))
}

func (c *Container) runCreate(ctx context.Context) error {
	p := c.init
	// Orphans are not swept until the new process is watched.
	release := c.set.cfg.Reaper.Hold()
	defer release()
	stdin, stdout, stderr := p.streams.RuntimeFiles()
	pid, err := c.runtime.Create(ctx, ociruntime.CreateArgs{
		ID: c.id.Container, Bundle: c.bundle, PidFile: p.pidPath(), ConsoleSocket: p.streams.ConsoleSocket(),
		NoPivot: c.options.NoPivotRoot, NoNewKeyring: c.options.NoNewKeyring,
		Stdin: stdin, Stdout: stdout, Stderr: stderr,
	})
	if err != nil {
		return fmt.Errorf("create container %q: %w", c.id.Container, err)
	}
	if c.waiting, err = programOf(pid); err != nil {
		c.log.Warn("a start that the shim's death breaks off will not be seen", "error", err)
	}
	return c.begin(ctx, pid)
}

// programOf names the program that a process runs.
func programOf(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) }

// begin takes up a new init process: watched first, then its cgroup and its
// streams.
func (c *Container) begin(ctx context.Context, pid int) error {
	if err := c.init.watchPid(pid); err != nil {
		return fmt.Errorf("create container %q: %w", c.id.Container, err)
	}
	if paths, err := cgroup.Of(pid); err == nil {
		c.setCgroup(paths)
	}
	sctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.init.streams.Started(sctx); err != nil {
		return fmt.Errorf("create container %q: %w", c.id.Container, err)
	}
	return nil
}

func (c *Container) setCgroup(paths cgroup.Paths) {
	cg, err := cgroup.Load(paths, c.set.own)
	if err != nil {
		c.log.Info("no statistics for this container; kill all goes to the processes known", "reason", err)
	}
	c.mu.Lock()
	c.cgroupPaths, c.cgroup = paths, cg
	c.mu.Unlock()
}

// undoCreate removes a container that the runtime may have made in part.
func (c *Container) undoCreate(ctx context.Context) error {
	release := c.set.cfg.Reaper.Hold()
	defer release()
	c.mu.Lock()
	watch := c.init.watch
	c.init.watch, c.init.pid, c.init.startTime = nil, 0, 0
	c.mu.Unlock()
	if watch != nil {
		watch.Forget()
	}
	if err := c.runtime.Delete(ctx, c.id.Container, true); err != nil && !isNotFound(err) {
		return fmt.Errorf("take back the create: %w", err)
	}
	return nil
}

func closeStreams(ctx context.Context, s *stdio.Streams) error {
	ctx, cancel := context.WithTimeout(ctx, drainGrace)
	defer cancel()
	return s.Close(ctx)
}
