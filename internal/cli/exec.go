package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/cli/attach"
	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) execCommand() *cli.Command {
	one := 1
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a command in a container that runs",
		ArgsUsage: "CONTAINER COMMAND [ARGUMENTS]",
		Category:  "Containers",
		Description: `Ends with the command's exit code (125: berth failed, 126: the command cannot
be run, 127: it is not there).

Examples:
  berth exec web ps
  berth exec -it web sh
  berth exec -u 1000 -w /tmp -e A=1 web env`,
		Flags: append([]cli.Flag{
			yes("detach", "do not wait for the command", "d"),
			yes("tty", "give the command a terminal", "t"),
			list("env", "set `KEY=VALUE`, or KEY to the value it has here", "e"),
			list("env-file", "read variables from a `FILE`, one a line"),
			str("workdir", "working `DIR` in the container", "w", "cwd"),
			str("user", "`USER[:GROUP]` by name or number", "u"),
			str("exec-id", "`NAME` of the process (default: random)"),
			str("pid-file", "write the process id to a `FILE`"),
		}, streamFlags()...),
		StopOnNthArg:           &one,
		UseShortOptionHandling: true,
		Action:                 a.exec,
	}
}

func (a *App) exec(ctx context.Context, cmd *cli.Command) error {
	args := cmd.Args().Slice()
	if len(args) == 0 {
		return usageError("a container is missing (berth exec CONTAINER COMMAND)")
	}
	if len(args) == 1 || args[1] == "" {
		return usageError("a command is missing (berth exec %s COMMAND)", args[0])
	}
	st, err := newStreams(cmd)
	if err != nil {
		return err
	}
	if st.detach {
		st.interactive = false // there is no attach to an exec
	}
	env, err := readEnv(cmd)
	if err != nil {
		return err
	}
	execID := cmd.String("exec-id")
	if execID == "" {
		execID = newID()
	}
	if err := runspec.CheckID(execID); err != nil {
		return err
	}
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		id := args[0]
		proc, err := s.execProcess(ctx, id, args[1:], cmd)
		if err != nil {
			return err
		}
		proc.Env = runspec.MergeEnv(proc.Env, env)
		term, err := st.openTerminal(a)
		if err != nil {
			return err
		}
		defer term.Restore()
		if w, h := term.Size(); w > 0 && h > 0 {
			proc.ConsoleSize = &specs.Box{Width: uint(w), Height: uint(h)}
		}
		if err := term.Raw(); err != nil {
			return err
		}
		t, err := s.startExec(ctx, id, execID, proc, st, cmd.String("pid-file"))
		if err != nil || st.detach {
			return err
		}
		return s.followExec(ctx, t, term)
	})
}

func (s *session) followExec(ctx context.Context, t *running, term *attach.Terminal) error {
	status, err := s.follow(ctx, t, term)
	if err != nil {
		return err
	}
	if status.code == 0 {
		return nil
	}
	return &exitError{code: int(status.code)}
}

// execProcess is the container's own process with another command.
func (s *session) execProcess(ctx context.Context, id string, args []string, cmd *cli.Command) (*specs.Process, error) {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return nil, containerError(id, err)
	}
	spec, err := containerSpec(&c)
	if err != nil {
		return nil, err
	}
	proc := spec.Process
	proc.Args, proc.CommandLine = args, ""
	proc.Terminal, proc.ConsoleSize = cmd.Bool("tty"), nil
	if dir := cmd.String("workdir"); dir != "" {
		if !path.IsAbs(dir) {
			return nil, usageError("working directory %q must be an absolute path", dir)
		}
		proc.Cwd = dir
	}
	if user := cmd.String("user"); user != "" {
		if err := s.execUser(ctx, id, user, spec); err != nil {
			return nil, err
		}
	}
	return proc, nil
}

// execUser looks a user up in the root of the running container.
func (s *session) execUser(ctx context.Context, id, user string, spec *specs.Spec) error {
	r, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = native(err); err != nil {
		return notRunning(id, err)
	}
	if r.Process.Status != tasktypes.Status_RUNNING {
		return notRunning(id, errdefs.ErrFailedPrecondition)
	}
	spec.Root = &specs.Root{Path: "/proc/" + strconv.FormatUint(uint64(r.Process.Pid), 10) + "/root"}
	err = oci.ApplyOpts(ctx, nil, &containers.Container{ID: id}, spec, oci.WithUser(user))
	if err == nil {
		uid := strconv.FormatUint(uint64(spec.Process.User.UID), 10)
		err = oci.ApplyOpts(ctx, nil, &containers.Container{ID: id}, spec, oci.WithAdditionalGIDs(uid))
	}
	switch {
	case errors.Is(err, oci.ErrNoUsersFound), errors.Is(err, oci.ErrNoGroupsFound), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("user %q: not in the container's /etc/passwd or /etc/group (use numbers: uid:gid)", user)
	case err != nil:
		return fmt.Errorf("user %q: %w", user, err)
	}
	return nil
}

// startExec registers and starts the process. On an error nothing of it is left.
func (s *session) startExec(ctx context.Context, id, execID string, proc *specs.Process, st *streams, pidFile string) (_ *running, err error) {
	value, err := json.Marshal(proc)
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	p, io, err := st.open(s.App, execID, "")
	if err != nil {
		return nil, err
	}
	t := &running{s: s, id: id, execID: execID, io: io}
	registered := false
	defer func() {
		if err == nil {
			return
		}
		if registered {
			t.discard(ctx)
		}
		if io != nil {
			io.Close()
		}
	}()
	_, err = s.client.TaskService().Exec(ctx, &tasks.ExecProcessRequest{
		ContainerID: id, ExecID: execID, Terminal: proc.Terminal,
		Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr,
		Spec: &anypb.Any{TypeUrl: processType, Value: value},
	})
	if err = native(err); err != nil {
		return nil, notRunning(id, err)
	}
	registered = true
	if !st.detach {
		t.wait(context.WithoutCancel(ctx))
	}
	started, err := s.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: id, ExecID: execID})
	if err = native(err); err != nil {
		return nil, fmt.Errorf("container %q: %w", id, err)
	}
	t.pid = started.Pid
	if err := writePID(pidFile, started.Pid); err != nil {
		return nil, fmt.Errorf("pid file: %w", err)
	}
	return t, t.attach(ctx)
}

// processType is the type URL that containerd's clients give a process.
const processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"

// discard takes away a process that did not start, or whose start failed half way.
func (t *running) discard(ctx context.Context) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	service := t.s.client.TaskService()
	_, err := service.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: t.id, ExecID: t.execID})
	if err == nil || errdefs.IsNotFound(native(err)) {
		return
	}
	_, _ = service.Kill(ctx, &tasks.KillRequest{ContainerID: t.id, ExecID: t.execID, Signal: 9})
	_, _ = service.Wait(ctx, &tasks.WaitRequest{ContainerID: t.id, ExecID: t.execID})
	_, err = service.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: t.id, ExecID: t.execID})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		t.s.warnf("container %q: process %q cannot be cleaned up: %v", t.id, t.execID, err)
	}
}

// notRunning explains why a container has no task to work on.
func notRunning(id string, err error) error {
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return say(errdefs.ErrFailedPrecondition, "container %q: it does not run (berth start %s)", id, id)
	}
	return fmt.Errorf("container %q: %w", id, err)
}

// containerSpec decodes a container's specification.
func containerSpec(c *containers.Container) (*specs.Spec, error) {
	var spec specs.Spec
	if c.Spec == nil {
		return nil, fmt.Errorf("container %q: it has no specification", c.ID)
	}
	if err := json.Unmarshal(c.Spec.GetValue(), &spec); err != nil {
		return nil, fmt.Errorf("container %q: specification: %w", c.ID, err)
	}
	if spec.Process == nil {
		spec.Process = &specs.Process{}
	}
	return &spec, nil
}
