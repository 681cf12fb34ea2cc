package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) killCommand() *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "send a signal to containers",
		ArgsUsage: "CONTAINER…",
		Category:  "Containers",
		Description: `Examples:
  berth kill web
  berth kill -s HUP web
  berth kill --all -s USR1 web     # every process in it`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Value: "KILL", Usage: "the `SIGNAL`, by name or number"},
			yes("all", "every process of the container, not the first alone", "a"),
			str("exec-id", "the process started by exec under this `NAME`"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			sig, err := runspec.ParseSignal(cmd.String("signal"))
			if err != nil {
				return err
			}
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				_, err := s.client.TaskService().Kill(ctx, &tasks.KillRequest{
					ContainerID: id, ExecID: cmd.String("exec-id"), Signal: uint32(sig), All: cmd.Bool("all"),
				})
				if err != nil {
					return s.taskError(ctx, id, native(err))
				}
				s.printf("%s\n", id)
				return nil
			})
		},
	}
}

func (a *App) stopCommand() *cli.Command {
	return &cli.Command{
		Name:      "stop",
		Usage:     "end containers: the stop signal, then KILL",
		ArgsUsage: "CONTAINER…",
		Category:  "Containers",
		Description: `The stop signal is the container's own (--stop-signal, the image's, else TERM).

Examples:
  berth stop web
  berth stop -t 60 database`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "time", Aliases: []string{"t"}, Usage: "`SECONDS` until KILL (default: the container's --stop-timeout, else 10)"},
			str("signal", "`SIGNAL` instead of the container's own", "s"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				if err := s.stop(ctx, id, cmd); err != nil {
					return err
				}
				s.printf("%s\n", id)
				return nil
			})
		},
	}
}

// stop ends a container. One that does not run is stopped already.
func (s *session) stop(ctx context.Context, id string, cmd *cli.Command) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return containerError(id, err)
	}
	sig, patience, err := stopRules(&c, cmd)
	if err != nil {
		return err
	}
	if err := s.noRestart(ctx, &c); err != nil {
		return err
	}
	service := s.client.TaskService()
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := s.waitExit(waitCtx, id, "")
		ended <- err
	}()
	_, err = service.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(sig)})
	if err = native(err); errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("container %q: %w", id, err)
	}
	if r, err := service.Get(ctx, &tasks.GetRequest{ContainerID: id}); err == nil && r.Process.Status == tasktypes.Status_PAUSED {
		// It gets the signal when it runs again; the KILL below does not wait for that.
		_, _ = service.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
	}
	done, err := await(ctx, ended, patience)
	if done || err != nil {
		return stopError(id, err)
	}
	_, err = service.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %q: kill: %w", id, err)
	}
	if done, err = await(ctx, ended, cleanupTime); !done && err == nil {
		return fmt.Errorf("container %q: it was killed but does not end", id)
	}
	return stopError(id, err)
}

func stopError(id string, err error) error {
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("container %q: wait: %w", id, err)
}

// await waits for an answer, at most for the time.
func await(ctx context.Context, answer <-chan error, d time.Duration) (done bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case err := <-answer:
		return true, err
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// stopRules are the signal that asks a container to end and the time that it has.
func stopRules(c *containers.Container, cmd *cli.Command) (unix.Signal, time.Duration, error) {
	r, err := readRecord(c)
	if err != nil {
		return 0, 0, err
	}
	patience := 10 * time.Second
	if r.StopTimeout != nil {
		patience = time.Duration(*r.StopTimeout) * time.Second
	}
	if cmd.IsSet("time") {
		if cmd.Int("time") < 0 {
			return 0, 0, usageError("--time %d: use a number of seconds from 0", cmd.Int("time"))
		}
		patience = time.Duration(cmd.Int("time")) * time.Second
	}
	if name := cmd.String("signal"); name != "" {
		sig, err := runspec.ParseSignal(name)
		return sig, patience, err
	}
	sig, err := runspec.ParseSignal(firstOf(c.Labels[containerd.StopSignalLabel], "TERM"))
	if err != nil {
		sig = unix.SIGTERM // a label that nobody can mean
	}
	return sig, patience, nil
}

func (a *App) restartCommand() *cli.Command {
	return &cli.Command{
		Name:      "restart",
		Usage:     "stop containers and start them again in the background",
		ArgsUsage: "CONTAINER…",
		Category:  "Containers",
		Description: `Examples:
  berth restart web
  berth restart -t 60 database`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "time", Aliases: []string{"t"}, Usage: "`SECONDS` until KILL (default: the container's --stop-timeout, else 10)"},
			str("signal", "`SIGNAL` instead of the container's own", "s"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				c, err := s.client.ContainerService().Get(ctx, id)
				if err != nil {
					return containerError(id, err)
				}
				if r, err := readRecord(&c); err == nil && r.Volatile {
					return runsOnce(id)
				}
				if err := s.stop(ctx, id, cmd); err != nil {
					return err
				}
				return s.startDetached(ctx, id)
			})
		},
	}
}

func (a *App) pauseCommand() *cli.Command {
	return &cli.Command{
		Name: "pause", Usage: "freeze every process of containers", ArgsUsage: "CONTAINER…", Category: "Containers",
		Description: "Example:\n  berth pause web && berth unpause web",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				if _, err := s.client.TaskService().Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id}); err != nil {
					return s.taskError(ctx, id, native(err))
				}
				s.printf("%s\n", id)
				return nil
			})
		},
	}
}

func (a *App) unpauseCommand() *cli.Command {
	return &cli.Command{
		Name: "unpause", Aliases: []string{"resume"}, Usage: "let paused containers go on", ArgsUsage: "CONTAINER…", Category: "Containers",
		Description: "Example:\n  berth unpause web",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				if _, err := s.client.TaskService().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id}); err != nil {
					return s.taskError(ctx, id, native(err))
				}
				s.printf("%s\n", id)
				return nil
			})
		},
	}
}

// taskError tells a container that is not there from one that does not run.
func (s *session) taskError(ctx context.Context, id string, err error) error {
	if !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %q: %w", id, err)
	}
	if _, e := s.client.ContainerService().Get(ctx, id); errdefs.IsNotFound(e) {
		return containerError(id, e)
	}
	return say(errdefs.ErrFailedPrecondition, "container %q: it does not run (berth start %s)", id, id)
}
