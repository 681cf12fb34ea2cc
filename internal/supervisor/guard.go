package supervisor

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// startGuard executes Berth's shim as the guard of a group, in a session of
// its own, and returns the address that it prints. The guard stays: while the
// supervisor lives it reaps it, and the guard outlives the supervisor.
//
// Its stderr is the group's log FIFO. It is opened for writing only: without
// a supervisor that reads, a write fails instead of blocking.
func (g *group) startGuard(ctx context.Context) (*bootapi.BootstrapResult, error) {
	s := g.s
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.startGuard())
	defer cancel()
	v := invocation{path: s.cfg.ShimBinary, ns: g.id.namespace, id: g.id.name, action: "guard", dir: g.dir}
	// Daemons side by side have the same names for different containers: each
	// keeps the OCI runtime's state in its own directory.
	v.env = append([]string{"BERTH_RUNTIME_ROOT=" + filepath.Join(s.cfg.State, "runc")}, s.cfg.ShimEnv...)
	if s.cfg.Linger > 0 {
		v.env = append(v.env, "BERTH_SHIM_LINGER="+s.cfg.Linger.String())
	}
	params, err := s.bootstrapParams(v.ns, v.id, task.Any{})
	if err != nil {
		return nil, err
	}
	stdin, err := inMemory(params)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	stderr, err := os.OpenFile(filepath.Join(g.dir, "log"), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the log of the shim: %w", err)
	}
	defer stderr.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the guard: %w", err)
	}
	defer out.Close()

	cmd := exec.Command(v.path, s.args(v)...)
	cmd.Dir, cmd.Env = v.dir, s.environ(v)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, in, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	in.Close()
	if err != nil {
		return nil, fmt.Errorf("start the guard of %s: %w", g.name(), err)
	}
	result, err := readGuard(ctx, out)
	if err != nil {
		// It leads its session and process group, and serves nobody yet.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		return nil, fmt.Errorf("start the guard of %s: %w", g.name(), err)
	}
	s.loops.Go(func() { g.reapGuard(cmd.Process) })
	return result, nil
}

func (g *group) reapGuard(p *os.Process) {
	state, err := awaitExit(g.s.ctx, p)
	switch {
	case g.s.ctx.Err() != nil:
	case err != nil:
		g.log.Warn("guard cannot be watched", "pid", p.Pid, "error", err)
	default:
		g.log.Debug("guard ended", "pid", p.Pid, "state", state.String())
	}
}

// readGuard reads the guard's answer up to its end, within ctx's deadline.
func readGuard(ctx context.Context, out *os.File) (*bootapi.BootstrapResult, error) {
	deadline, _ := ctx.Deadline()
	if err := out.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
	defer stop()
	data, err := io.ReadAll(io.LimitReader(out, maxBootstrap))
	if err != nil {
		return nil, fmt.Errorf("it did not say in time where it listens: %w", err)
	}
	return parseBootstrap(data)
}

// inMemory is a file that holds data, to be read by a child.
func inMemory(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("bootstrap", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "bootstrap")
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("write a file in memory: %w", err)
	}
	return f, nil
}

// groupKey says which group a task belongs to.
func (s *Supervisor) groupKey(container string, annotations map[string]string) string {
	for _, name := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if value := annotations[name]; value != "" {
			return "group." + value
		}
	}
	if s.cfg.Sharing == SharingContainer {
		return "container." + container
	}
	return SharingNamespace
}
