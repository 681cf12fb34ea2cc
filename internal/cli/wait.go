package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
)

func (a *App) waitCommand() *cli.Command {
	return &cli.Command{
		Name:      "wait",
		Usage:     "wait until containers end and print their exit codes",
		ArgsUsage: "CONTAINER…",
		Category:  "Containers",
		Description: `Examples:
  berth wait job
  code=$(berth wait job)`,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				status, err := s.waitExit(ctx, id, "")
				if errdefs.IsNotFound(err) {
					return s.waitRecorded(ctx, id)
				}
				if err != nil {
					return containerError(id, err)
				}
				s.printf("%d\n", status.code)
				return nil
			})
		},
	}
}

// waitRecorded prints the exit of a container whose task is deleted.
func (s *session) waitRecorded(ctx context.Context, id string) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return containerError(id, err)
	}
	r, err := readRecord(&c)
	if err != nil {
		return err
	}
	if r.Exit == nil {
		return say(errdefs.ErrNotFound, "container %q: it does not run (berth start %s)", id, id)
	}
	s.printf("%d\n", r.Exit.Status)
	return nil
}

// awaitStop polls until a task that was killed before its start is stopped or
// gone: such a one may report no exit.
func (s *session) awaitStop(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		r, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		if err = native(err); errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("container %q: %w", id, err)
		}
		if r.Process.Status == tasktypes.Status_STOPPED {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("container %q: it was killed but does not end: %w", id, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// statusWord is docker's word for a status.
func statusWord(s tasktypes.Status) string {
	if s == tasktypes.Status_STOPPED {
		return "exited"
	}
	return strings.ToLower(s.String())
}
