package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v3"
)

func (a *App) runCommand() *cli.Command {
	one := 1
	return &cli.Command{
		Name:      "run",
		Usage:     "make a container and run a command in it",
		ArgsUsage: "IMAGE [COMMAND [ARGUMENTS]]",
		Category:  "Containers",
		Description: `Runs in the foreground unless --detach is given: output comes here, input only
with --interactive, signals go to the command, and berth ends with its exit
code (125: berth failed, 126: the command cannot be run, 127: it is not there).

Examples:
  berth run --rm alpine echo hello
  berth run --rm -it alpine sh
  berth run -d --name web -v /srv/www:/www:ro alpine httpd -f -h /www
  berth run --rm --memory 64m --cpus 0.5 --pids-limit 50 alpine ./job
  berth run --rm --rootfs /srv/rootfs /bin/sh -c 'id'`,
		Flags: append(append([]cli.Flag{
			yes("detach", "run in the background and print the container's name", "d"),
			yes("rm", "remove the container when it has ended"),
			str("log-driver", "what keeps the output of --detach: `json-file`, or none"),
			list("log-opt", "of json-file: `max-size=BYTES` of a file (10m) and max-file=NUMBER of files"),
		}, streamFlags()...), containerFlags()...),
		StopOnNthArg:           &one,
		UseShortOptionHandling: true,
		Action:                 a.run,
	}
}

func (a *App) run(ctx context.Context, cmd *cli.Command) error {
	p, err := newPlan(cmd)
	if err != nil {
		return err
	}
	if p.pull == "" {
		p.pull = "missing"
		if p.image == "" {
			p.pull = "never"
		}
	}
	st, err := newStreams(cmd)
	if err != nil {
		return err
	}
	if p.logConfig, err = st.readLogDriver(cmd); err != nil {
		return err
	}
	p.remove = cmd.Bool("rm")
	if p.remove && st.detach {
		return usageError("--rm and --detach exclude each other (remove it later: berth rm -f %s)", p.spec.ID)
	}
	switch {
	case p.volatile && !p.remove:
		return usageError("--volatile needs --rm: the file system is for one run")
	case p.restart.Policy != "" && p.restart.Policy != "no" && !st.detach:
		return usageError("--restart needs --detach: in the foreground the container ends with this command")
	}
	p.volatile = p.volatile || p.remove && knowsVolatile()
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		p.detached = st.detach
		if st.keepsLog() {
			if p.log, err = s.newLog(ctx, p.spec.ID, p.runtime, p.logConfig, false); err != nil {
				return err
			}
		}
		return s.runPlan(ctx, p, st)
	})
}

// runPlan makes the container and runs it. When it cannot be started, nothing
// of it is left.
func (s *session) runPlan(ctx context.Context, p *plan, st *streams) error {
	term, err := st.openTerminal(s.App)
	if err != nil {
		return err
	}
	defer term.Restore()
	p.spec.Process.Width, p.spec.Process.Height = term.Size()
	m, err := s.createContainer(ctx, p)
	if err != nil {
		removeLog(p.log)
		return err
	}
	if p.cidFile != "" {
		if err := writeNew(p.cidFile, m.ID); err != nil {
			s.discard(ctx, m)
			return fmt.Errorf("cidfile: %w", err)
		}
	}
	// A specification of the user's own may have its own mind.
	st.terminal = m.record.Terminal
	t, err := s.startTask(ctx, m, st, term, p.pidFile)
	if err != nil {
		s.discard(ctx, m)
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

// ended keeps or removes a container whose process has ended in the
// foreground, and ends with its code, also when something is left behind.
func (s *session) ended(ctx context.Context, m *made, status exitStatus) error {
	var err error
	if m.record.Remove {
		err = errors.Join(s.releaseFiles(ctx, &m.Container, true), s.deleteRecord(ctx, &m.Container))
	} else {
		err = s.noteExit(ctx, m, status)
	}
	if err != nil {
		s.warnf("%v", err)
	}
	if status.code == 0 {
		return nil
	}
	return &exitError{code: int(status.code)}
}

// discard takes away a container that could not be started.
func (s *session) discard(ctx context.Context, m *made) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := s.remove(ctx, &m.Container, true); err != nil {
		s.warnf("container %q: cannot be cleaned up: %v (berth rm -f %s)", m.ID, err, m.ID)
	}
}

func writePID(name string, pid uint32) error {
	if name == "" {
		return nil
	}
	return replaceFile(name, strconv.FormatUint(uint64(pid), 10))
}
