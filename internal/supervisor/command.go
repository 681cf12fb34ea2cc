package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/task"
)

// maxStderr bounds what is kept of a shim's complaints.
const maxStderr = 16 << 10

// invocation is one execution of a shim binary.
type invocation struct {
	path   string
	ns, id string
	action string // "start", "delete", "guard"
	dir    string
	// bundle is told to "delete" only.
	bundle string
	env    []string
}

func (s *Supervisor) args(v invocation) []string {
	args := []string{"-namespace", v.ns, "-address", s.cfg.Address, "-publish-binary", s.cfg.Binary, "-id", v.id}
	if v.bundle != "" {
		args = append(args, "-bundle", v.bundle)
	}
	if s.cfg.Debug {
		args = append(args, "-debug")
	}
	return append(args, v.action)
}

// environ is the daemon's own environment, without what its service manager
// meant for it alone, and what shims are told.
func (s *Supervisor) environ(v invocation) []string {
	var env []string
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "MAINPID":
		default:
			env = append(env, kv)
		}
	}
	env = append(env,
		"GOMAXPROCS=2", "MAX_SHIM_VERSION=2",
		"TTRPC_ADDRESS="+s.cfg.TTRPCAddress, "GRPC_ADDRESS="+s.cfg.Address, "NAMESPACE="+v.ns)
	return append(env, v.env...)
}

// bootstrapParams is what a shim reads from its stdin when it starts.
func (s *Supervisor) bootstrapParams(ns, id string, options task.Any) ([]byte, error) {
	params := &bootapi.BootstrapParams{
		InstanceID:             id,
		Namespace:              ns,
		ContainerdVersion:      s.cfg.Version,
		ContainerdTtrpcAddress: s.cfg.TTRPCAddress,
		ContainerdGrpcAddress:  s.cfg.Address,
		ContainerdBinary:       s.cfg.Binary,
		SocketDir:              &s.cfg.SocketDir,
	}
	if s.cfg.Debug {
		params.LogLevel = bootapi.LogLevel_LOG_LEVEL_DEBUG
	}
	if !options.Empty() {
		ext := &anypb.Any{TypeUrl: options.TypeURL, Value: options.Value}
		params.Extensions = append(params.Extensions, &bootapi.Extension{Value: ext})
	}
	data, err := proto.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encode the parameters of the shim: %w", err)
	}
	return data, nil
}

// execute runs a shim binary to its end and returns its stdout. ctx bounds
// it; the whole process group goes then. What it says on stderr is part of the
// error, or logged.
func (s *Supervisor) execute(ctx context.Context, v invocation, stdin []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, v.path, s.args(v)...)
	cmd.Dir = v.dir
	cmd.Env = s.environ(v)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	out, stderr, err := run(ctx, cmd)
	if err != nil {
		return nil, fmt.Errorf("shim %s %s: %w", v.path, v.action, err)
	}
	if stderr != "" {
		s.cfg.Log.Warn("shim complained", "shim", v.path, "action", v.action, "namespace", v.ns, "id", v.id, "stderr", stderr)
	}
	return out, nil
}

func run(ctx context.Context, cmd *exec.Cmd) (stdout []byte, complaint string, err error) {
	out, stderr := &cappedBuffer{limit: maxBootstrap}, &cappedBuffer{limit: maxStderr}
	cmd.Stdout, cmd.Stderr = out, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A server that the command leaves behind may hold the pipes.
	cmd.WaitDelay = 500 * time.Millisecond
	err = cmd.Run()
	complaint = strings.TrimSpace(stderr.buf.String())
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil
	case ctx.Err() != nil:
		err = fmt.Errorf("killed because it did not end in time: %w", ctx.Err())
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	if err == nil && out.over {
		err = fmt.Errorf("printed more than %d bytes: %w", out.limit, errdefs.ErrUnavailable)
	}
	if err != nil && complaint != "" {
		err = fmt.Errorf("%s: %w", complaint, err)
	}
	return out.buf.Bytes(), complaint, err
}

// cappedBuffer keeps the first bytes and swallows the rest.
type cappedBuffer struct {
	buf   bytes.Buffer
	limit int
	over  bool
}

func (b *cappedBuffer) Write(p []byte) (int, error) {
	keep := p
	if room := b.limit - b.buf.Len(); len(p) > room {
		b.over = true
		keep = p[:room]
	}
	b.buf.Write(keep)
	return len(p), nil
}
