package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

func (a *App) rmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Aliases:   []string{"remove"},
		Usage:     "remove containers, with their file systems and logs",
		ArgsUsage: "CONTAINER…",
		Category:  "Containers",
		Description: `Examples:
  berth rm web
  berth rm -f web worker     # also when they run
  berth rm $(berth ps -aq)`,
		Flags:                  []cli.Flag{yes("force", "kill what runs", "f")},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				c, err := s.client.ContainerService().Get(ctx, id)
				if err != nil {
					return containerError(id, err)
				}
				if err := s.remove(ctx, &c, cmd.Bool("force")); err != nil {
					return err
				}
				s.printf("%s\n", id)
				return nil
			})
		},
	}
}

// each runs fn for every argument, goes on after an error, and fails if one
// failed.
func (a *App) each(ctx context.Context, cmd *cli.Command, kind string, fn func(context.Context, *session, string) error) error {
	if !cmd.Args().Present() {
		return usageError("a %s is missing (berth %s %s)", kind, cmd.Name, cmd.ArgsUsage)
	}
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		var errs []error
		for _, name := range cmd.Args().Slice() {
			if err := fn(ctx, s, name); err != nil {
				errs = append(errs, err)
			}
			if ctx.Err() != nil {
				break
			}
		}
		// All but the last are printed here, a line each.
		for len(errs) > 1 {
			a.warnf("%s: %s", cmd.Name, oneLine(errs[0]))
			errs = errs[1:]
		}
		return errors.Join(errs...)
	})
}

// remove deletes a container's task, snapshot, record and log. It works from
// every state, and what is gone already does not count; without force, a task
// that lives is refused.
func (s *session) remove(ctx context.Context, c *containers.Container, force bool) error {
	if force {
		if err := s.noRestart(ctx, c); err != nil {
			return err
		}
	}
	if err := s.removeTask(ctx, c.ID, force); err != nil {
		return err
	}
	if err := s.releaseFiles(ctx, c, force); err != nil {
		return err
	}
	if err := s.deleteRecord(ctx, c); err != nil {
		return err
	}
	if r, err := readRecord(c); err == nil {
		removeLog(r.Log)
	}
	return nil
}

// deleteRecord deletes the container's record and its snapshot. The two do not
// wait for each other: each is a transaction that waits for the disk.
func (s *session) deleteRecord(ctx context.Context, c *containers.Container) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	snapshot := make(chan error, 1)
	go func() {
		if c.SnapshotKey == "" {
			snapshot <- nil
			return
		}
		snapshot <- s.client.SnapshotService(c.Snapshotter).Remove(ctx, c.SnapshotKey)
	}()
	err := s.client.ContainerService().Delete(ctx, c.ID)
	if errdefs.IsNotFound(err) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("container %q: delete: %w", c.ID, err)
	}
	if e := <-snapshot; e != nil && !errdefs.IsNotFound(e) {
		err = errors.Join(err, fmt.Errorf("container %q: delete snapshot %q: %w", c.ID, c.SnapshotKey, e))
	}
	return err
}

// removeTask deletes the task of a container, if it has one.
func (s *session) removeTask(ctx context.Context, id string, force bool) (failed error) {
	service := s.client.TaskService()
	r, err := service.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = native(err); errdefs.IsNotFound(err) {
		return nil
	}
	status := tasktypes.Status_UNKNOWN
	if err == nil {
		status = r.Process.Status
		defer func(p *tasktypes.Process) {
			if failed == nil {
				removeFIFOs(p.Stdin, p.Stdout, p.Stderr)
			}
		}(r.Process)
	} else if !force {
		return fmt.Errorf("container %q: its state is unknown (berth rm -f removes it all the same): %w", id, err)
	}
	if status != tasktypes.Status_STOPPED && status != tasktypes.Status_CREATED && !force {
		return say(errdefs.ErrFailedPrecondition, "container %q: it is %s (stop it first, or use berth rm -f)", id, statusWord(status))
	}
	// One that was to be restored has no process before its start.
	if status != tasktypes.Status_STOPPED && (err != nil || r.Process.Pid != 0) {
		if err := s.killForRemoval(ctx, id, status); err != nil {
			return err
		}
	}
	_, err = service.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %q: delete the task: %w", id, err)
	}
	return nil
}

// removeFIFOs removes what a client that let go of its terminal left, with the
// directory where that is empty then.
func removeFIFOs(names ...string) {
	for _, name := range names {
		if st, err := os.Lstat(name); name != "" && err == nil && st.Mode().Type() == fs.ModeNamedPipe {
			_ = os.Remove(name)
			_ = os.Remove(filepath.Dir(name))
		}
	}
}

// killForRemoval kills every process of a task and waits for its end. A paused
// one is resumed, or on cgroup v1 the signal would not reach it.
func (s *session) killForRemoval(ctx context.Context, id string, status tasktypes.Status) error {
	service := s.client.TaskService()
	_, err := service.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) && status != tasktypes.Status_UNKNOWN {
		return fmt.Errorf("container %q: kill: %w", id, err)
	}
	if status == tasktypes.Status_PAUSED || status == tasktypes.Status_PAUSING {
		_, err := service.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
		if err = native(err); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			return fmt.Errorf("container %q: resume, to be killed: %w", id, err)
		}
	}
	if status == tasktypes.Status_CREATED {
		// Its exit may never be reported; the delete does not need it.
		return s.awaitStop(ctx, id)
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
	defer cancel()
	_, err = service.Wait(ctx, &tasks.WaitRequest{ContainerID: id})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) && status != tasktypes.Status_UNKNOWN {
		return fmt.Errorf("container %q: it was killed but does not end: %w", id, err)
	}
	return nil
}
