package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/task"
)

// Checkpoint saves the container with CRIU.
func (c *Container) Checkpoint(ctx context.Context, cfg task.CheckpointConfig) error {
	o, err := c.set.cfg.DecodeCheckpointOptions(cfg.Options)
	if err != nil {
		return fmt.Errorf("checkpoint container %q: %w", c.id.Container, err)
	}
	image := cfg.Path
	if image == "" {
		image = o.ImagePath
	}
	told := func() task.Event { return task.Event{Kind: task.EventCheckpointed, Checkpoint: image} }
	err = c.change(ctx, task.OpCheckpoint, told, func(ctx context.Context) error {
		return c.withCRIU(o.WorkPath, "dump", func(work string) error {
			return c.runtime.Checkpoint(ctx, ociruntime.CheckpointArgs{
				ID: c.id.Container,
				CRIU: ociruntime.CRIU{
					ImagePath: image, WorkPath: work, TCPEstablished: o.OpenTCP, ExternalUnixSockets: o.ExternalUnixSockets,
					ShellJob: o.Terminal, FileLocks: o.FileLocks, EmptyNamespaces: o.EmptyNamespaces, CgroupsMode: o.CgroupsMode,
				},
				ParentPath: o.ParentPath, LeaveRunning: !o.Exit,
			})
		})
	})
	if err != nil {
		return fmt.Errorf("checkpoint container %q: %w", c.id.Container, err)
	}
	return nil
}

// maxCRIULog bounds the copy of a log.
const maxCRIULog = 8 << 20

// withCRIU gives CRIU a directory for its work. After a failure its log,
// "dump" or "restore", is in the bundle, and the error says so.
func (c *Container) withCRIU(work, kind string, fn func(work string) error) error {
	if work == "" {
		work = filepath.Join(c.bundle, "work", "criu-work")
		defer func() {
			if err := os.RemoveAll(work); err != nil {
				c.log.Warn("remove the work of CRIU", "error", err)
			}
		}()
	}
	if err := os.MkdirAll(work, 0o711); err != nil {
		return err
	}
	// An old one would be taken for that of this call.
	if err := remove(filepath.Join(work, kind+".log")); err != nil {
		return err
	}
	err := fn(work)
	if err == nil {
		return nil
	}
	kept := filepath.Join(c.bundle, "criu-"+kind+".log")
	if cerr := copyLog(filepath.Join(work, kind+".log"), kept); cerr == nil {
		return fmt.Errorf("%w (log: %s)", err, kept)
	} else if !errors.Is(cerr, os.ErrNotExist) {
		c.log.Warn("keep the log of CRIU", "error", cerr)
	}
	return err
}

func copyLog(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCRIULog))
	if err != nil {
		return err
	}
	return replaceFile(to, data)
}

// restore makes the init process from the checkpoint. It runs when the
// runtime returns. A failure leaves nothing but the container as it was.
func (c *Container) restore(ctx context.Context) error {
	stdin, stdout, stderr := c.init.streams.RuntimeFiles()
	err := c.withCRIU(c.options.CriuWorkPath, "restore", func(work string) error {
		pid, err := c.runtime.Restore(ctx, ociruntime.RestoreArgs{
			ID: c.id.Container, CRIU: ociruntime.CRIU{ImagePath: c.checkpoint, WorkPath: work},
			Bundle: c.bundle, PidFile: c.init.pidPath(), ConsoleSocket: c.init.streams.ConsoleSocket(),
			NoPivot: c.options.NoPivotRoot, Stdin: stdin, Stdout: stdout, Stderr: stderr,
		})
		if err != nil {
			return err
		}
		return c.begin(ctx, pid)
	})
	if err != nil {
		err = errors.Join(err, c.undoCreate(ctx))
	}
	return err
}
