package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/attach"
)

func (a *App) attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Usage:     "take hold of a container's terminal or streams",
		ArgsUsage: "CONTAINER",
		Category:  "Containers",
		Description: `Shows what the container writes from now on, forwards signals, and ends with its
exit code. A container that was started with -dit, or whose terminal was let go
of with the detach keys, gets the terminal again; while nobody is attached its
output waits in a pipe, and the program too when that is full. One that was
started with -d goes on with its log, which berth logs shows without forwarding
signals. Examples:
  berth run -dit --name sh alpine sh && berth attach sh
  berth attach --detach-keys ctrl-x sh`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "detach-keys", Usage: "`KEYS` that let go of a terminal", Value: defaultDetachKeys},
			yes("no-stdin", "show the output alone"),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 {
				return usageError("name one container (berth attach CONTAINER)")
			}
			keys, err := attach.ParseKeys(cmd.String("detach-keys"))
			if err != nil {
				return err
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.attachTo(ctx, cmd.Args().First(), keys, !cmd.Bool("no-stdin"))
			})
		},
	}
}

func (s *session) attachTo(ctx context.Context, id string, keys []byte, input bool) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return containerError(id, err)
	}
	m := &made{Container: c}
	if m.record, err = readRecord(&c); err != nil {
		return err
	}
	r, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = native(err); err != nil {
		return notRunning(id, err)
	}
	p := r.Process
	if p.Status == tasktypes.Status_STOPPED {
		return notRunning(id, errdefs.ErrFailedPrecondition)
	}
	if m.record.Log != "" && p.Stdout == logURI(m.record.Log) {
		return s.attachToLog(ctx, m)
	}
	if st, err := os.Lstat(p.Stdout); p.Stdout == "" || err != nil || st.Mode().Type() != fs.ModeNamedPipe {
		return say(errdefs.ErrFailedPrecondition, "container %q: its output goes neither to a log nor through a pipe (-d or -dit starts one to attach to)", id)
	}
	term, err := (&streams{terminal: p.Terminal, interactive: input && p.Stdin != ""}).openTerminal(s.App)
	if err != nil {
		return err
	}
	defer term.Restore()
	if err := term.Raw(); err != nil {
		return err
	}
	cfg := attach.Config{Terminal: p.Terminal, Stdout: s.Stdout, Stderr: s.Stderr}
	if input {
		cfg.Stdin = s.Stdin
	}
	if p.Terminal {
		cfg.DetachKeys = keys
	}
	io, err := attach.Open(cfg, p.Stdin, p.Stdout, p.Stderr)
	if err != nil {
		return fmt.Errorf("container %q: attach: %w", id, err)
	}
	t := &running{s: s, id: id, pid: p.Pid, io: io}
	t.wait(context.WithoutCancel(ctx))
	if err := t.attach(ctx); err != nil {
		io.Close()
		return err
	}
	status, err := s.follow(ctx, t, term)
	if err != nil {
		return err
	}
	removeFIFOs(p.Stdin, p.Stdout, p.Stderr)
	return s.ended(ctx, m, status)
}

// attachToLog shows what a container in the background writes from now on, and
// stands before it as run does: signals are forwarded, the exit code is its own.
func (s *session) attachToLog(ctx context.Context, m *made) error {
	l, err := s.openLog(m.record.Log, logOptions{follow: true})
	if err != nil {
		return fmt.Errorf("container %q: log: %w", m.ID, err)
	}
	defer l.close()
	s.catchForwarded()
	signals := s.takeSignals()
	ctx = context.WithoutCancel(ctx)
	t := &running{s: s, id: m.ID}
	ended, forwarded := make(chan struct{}), make(chan struct{})
	go func() { // until the container has ended
		defer close(forwarded)
		for {
			select {
			case <-ended:
				return
			case sig := <-signals:
				if n, ok := sig.(unix.Signal); ok && n != unix.SIGPIPE && n != unix.SIGWINCH {
					t.kill(ctx, n)
				}
			}
		}
	}()
	status, err := s.followLog(ctx, m.ID, logPath(m.record.Log), l)
	close(ended)
	<-forwarded
	if err == nil && status.code != 0 {
		err = &exitError{code: int(status.code)}
	}
	return err
}
