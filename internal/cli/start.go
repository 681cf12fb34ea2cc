package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/attach"
)

func (a *App) createCommand() *cli.Command {
	one := 1
	return &cli.Command{
		Name:      "create",
		Usage:     "make a container without running it",
		ArgsUsage: "IMAGE [COMMAND [ARGUMENTS]]",
		Category:  "Containers",
		Description: `Takes the flags of run. Examples:
  berth create --name job alpine ./job
  berth start job`,
		Flags:                  containerFlags(),
		StopOnNthArg:           &one,
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			p, err := newPlan(cmd)
			if err != nil {
				return err
			}
			if p.volatile {
				return usageError("--volatile needs run --rm: the file system is for one run")
			}
			if p.pull == "" {
				p.pull = "missing"
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				m, err := s.createContainer(ctx, p)
				if err != nil {
					return err
				}
				if p.cidFile != "" {
					if err := writeNew(p.cidFile, m.ID); err != nil {
						s.discard(ctx, m)
						return fmt.Errorf("cidfile: %w", err)
					}
				}
				s.printf("%s\n", m.ID)
				return nil
			})
		},
	}
}

func (a *App) startCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Usage:     "run the command of a container that does not run",
		ArgsUsage: "CONTAINER",
		Category:  "Containers",
		Description: `In the background, with a log, unless --attach or --interactive is given.

Examples:
  berth start web
  berth start -a job      # ends with the job's exit code`,
		Flags: append([]cli.Flag{
			yes("attach", "show the output here and end with the exit code", "a"),
			str("pid-file", "write the process id to a `FILE`"),
		}, streamFlags()...),
		UseShortOptionHandling: true,
		Action:                 a.start,
	}
}

func (a *App) start(ctx context.Context, cmd *cli.Command) error {
	if cmd.NArg() != 1 {
		return usageError("name one container (berth start CONTAINER)")
	}
	st, err := newStreams(cmd)
	if err != nil {
		return err
	}
	st.detach = !cmd.Bool("attach") && !st.interactive
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		m, err := s.startable(ctx, cmd.Args().First(), st)
		if err != nil {
			return err
		}
		return s.startMade(ctx, cmd, m, st, func() { s.discardTask(ctx, m.ID) })
	})
}

// startMade starts a container and, unless that is in the background, stays
// with it to its end. Where it cannot be started, undo is called.
func (s *session) startMade(ctx context.Context, cmd *cli.Command, m *made, st *streams, undo func()) (err error) {
	if m.record.Terminal && st.interactive {
		if st.detachKeys, err = attach.ParseKeys(cmd.String("detach-keys")); err != nil {
			undo()
			return err
		}
	}
	st.terminal = m.record.Terminal
	term, err := st.openTerminal(s.App)
	if err != nil {
		undo()
		return err
	}
	defer term.Restore()
	t, err := s.startTask(ctx, m, st, term, cmd.String("pid-file"))
	if err != nil {
		if !errdefs.IsAlreadyExists(err) { // then it is another command's
			undo()
		}
		return err
	}
	if st.detach {
		s.printf("%s\n", m.ID)
		return nil
	}
	status, err := s.follow(ctx, t, term)
	if err != nil {
		return err
	}
	return s.ended(ctx, m, status)
}

// runsOnce refuses to start a container whose file system is volatile.
func runsOnce(id string) error {
	return say(errdefs.ErrFailedPrecondition, "container %q: it was made by run --rm, and its file system is for one run (remove it: berth rm -f %s)", id, id)
}

// startDetached starts a container in the background and prints its name.
func (s *session) startDetached(ctx context.Context, id string) error {
	st := &streams{detach: true, fifoDir: defaultFIFODir}
	m, err := s.startable(ctx, id, st)
	if err != nil {
		return err
	}
	st.terminal = m.record.Terminal
	if _, err := s.startTask(ctx, m, st, nil, ""); err != nil {
		s.discardTask(ctx, id)
		return err
	}
	s.printf("%s\n", id)
	return nil
}

// discardTask takes away a task that could not be started.
func (s *session) discardTask(ctx context.Context, id string) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := s.removeTask(ctx, id, true); err != nil {
		s.warnf("%v", err)
	}
}

// startable loads a container that is to be started: the task of an earlier
// run is deleted, and the container gets a log where it needs one.
func (s *session) startable(ctx context.Context, id string, st *streams) (*made, error) {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return nil, containerError(id, err)
	}
	m := &made{Container: c}
	if m.record, err = readRecord(&c); err != nil {
		return nil, err
	}
	if _, ok := c.Extensions[recordKey]; !ok {
		spec, err := containerSpec(&c)
		if err != nil {
			return nil, err
		}
		m.record.Terminal = spec.Process.Terminal
	}
	if m.record.Volatile {
		return nil, runsOnce(id)
	}
	if err := s.removeTask(ctx, id, false); err != nil {
		if errdefs.IsFailedPrecondition(err) {
			return nil, say(errdefs.ErrAlreadyExists, "container %q: it runs already", id)
		}
		return nil, err
	}
	if err := s.allowRestart(ctx, &c); err != nil {
		return nil, err
	}
	if err := s.rejoinNetwork(ctx, m); err != nil {
		return nil, err
	}
	if c.SnapshotKey != "" {
		if m.rootfs, err = s.client.SnapshotService(c.Snapshotter).Mounts(ctx, c.SnapshotKey); err != nil {
			return nil, fmt.Errorf("container %q: snapshot %q: %w", id, c.SnapshotKey, err)
		}
	}
	if st.detach != m.record.Detached || st.keepsLog() && m.record.Log == "" {
		m.record.Detached = st.detach
		if st.keepsLog() && m.record.Log == "" {
			if m.record.Log, err = s.newLog(ctx, id, c.Runtime.Name, nil, true); err != nil {
				return nil, err
			}
		}
		if err := s.storeRecord(ctx, m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// noteExit keeps how a run in the foreground ended, for ps and wait.
func (s *session) noteExit(ctx context.Context, m *made, status exitStatus) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	m.record.Exit = &exitRecord{Status: status.code, At: status.at}
	if status.at.IsZero() {
		m.record.Exit.At = time.Now()
	}
	return s.storeRecord(ctx, m)
}

// storeRecord writes berth's notes about a container that exists.
func (s *session) storeRecord(ctx context.Context, m *made) error {
	update := containers.Container{ID: m.ID}
	if err := m.record.put(&update); err != nil {
		return err
	}
	if _, err := s.client.ContainerService().Update(ctx, update, "extensions."+recordKey); err != nil {
		return fmt.Errorf("container %q: update: %w", m.ID, err)
	}
	return nil
}
