package container

import (
	"context"
	"fmt"
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
	work, temporary := o.WorkPath, false
	if work == "" {
		work, temporary = filepath.Join(c.bundle, "work", "criu-work"), true
	}
	err = c.change(ctx, task.OpCheckpoint, func(ctx context.Context) error {
		if err := os.MkdirAll(work, 0o711); err != nil {
			return err
		}
		err := c.runtime.Checkpoint(ctx, ociruntime.CheckpointArgs{
			ID: c.id.Container,
			CRIU: ociruntime.CRIU{
				ImagePath: image, WorkPath: work, TCPEstablished: o.OpenTCP, ExternalUnixSockets: o.ExternalUnixSockets,
				ShellJob: o.Terminal, FileLocks: o.FileLocks, EmptyNamespaces: o.EmptyNamespaces,
			},
			ParentPath: o.ParentPath, LeaveRunning: !o.Exit,
		})
		if err == nil && temporary {
			err = os.RemoveAll(work)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("checkpoint container %q: %w", c.id.Container, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set.cfg.Events.Emit(task.Event{Kind: task.EventCheckpointed, ID: c.id, Checkpoint: image})
	return nil
}

// restore makes the init process from the checkpoint. It runs when the
// runtime returns.
func (c *Container) restore(ctx context.Context) error {
	stdin, stdout, stderr := c.init.streams.RuntimeFiles()
	work := c.options.CriuWorkPath
	if work == "" {
		work = filepath.Join(c.bundle, "work", "criu-work")
	}
	if err := os.MkdirAll(work, 0o711); err != nil {
		return err
	}
	pid, err := c.runtime.Restore(ctx, ociruntime.RestoreArgs{
		ID: c.id.Container, CRIU: ociruntime.CRIU{ImagePath: c.checkpoint, WorkPath: work},
		Bundle: c.bundle, PidFile: c.init.pidPath(), ConsoleSocket: c.init.streams.ConsoleSocket(),
		NoPivot: c.options.NoPivotRoot, Stdin: stdin, Stdout: stdout, Stderr: stderr,
	})
	if err != nil {
		return err
	}
	return c.begin(ctx, pid)
}
