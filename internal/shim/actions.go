package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/ociruntime"
)

// featuresURL is the type of a runtime's features as JSON.
const featuresURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// Start is the action "start" of a foreign daemon: it makes the group's socket
// and the process that serves it, or finds them made, and prints the address.
// The working directory is the bundle. There is no guard: such a daemon
// buries a container with its shim.
func Start(a Args, in io.Reader, out io.Writer) error {
	var given bytes.Buffer
	params, err := readParams(io.TeeReader(in, &given), a)
	if err != nil {
		return err
	}
	bundle, err := os.Getwd()
	if err != nil {
		return err
	}
	group, err := groupOf(bundle, a.ID)
	if err != nil {
		return err
	}
	dir := params.GetSocketDir()
	if dir == "" {
		dir = defaultSocketDir
	}
	// The link tells those who look where the bundle's socket is; "delete" is one.
	if err := os.Symlink(dir, filepath.Join(bundle, "s")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	socket := socketPath(dir, a.Address, a.Namespace, group)
	if params == nil {
		// Where such a daemon finds the shim again after a restart.
		if err := os.WriteFile(filepath.Join(bundle, "address"), []byte("unix://"+socket), 0o600); err != nil {
			return err
		}
	}
	listener, err := listen(socket)
	if errors.Is(err, errServed) {
		return writeResult(out, socket, params)
	}
	if err != nil {
		return err
	}
	defer listener.Close()
	if err = place(params, given.Bytes()); err == nil {
		err = startServing(a, bundle, socket, listener)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start the shim: %w", err), remove(socket))
	}
	return writeResult(out, socket, params)
}

// place puts this process, and so the shim that it starts, where the daemon wants
// shims: in the cgroup that the runtime's options name, and where shareNoCore does.
func place(params *bootstrap.BootstrapParams, given []byte) error {
	var o options.Options
	if params != nil {
		if _, err := params.FindExtension(&o); err != nil {
			return err
		}
	} else if bare := (&anypb.Any{}); proto.Unmarshal(given, bare) == nil && bare.MessageIs(&o) {
		if err := bare.UnmarshalTo(&o); err != nil {
			return fmt.Errorf("runtime options: %w", err)
		}
	}
	if o.ShimCgroup != "" {
		if err := cgroup.Join(o.ShimCgroup, os.Getpid()); err != nil {
			return fmt.Errorf("option shim_cgroup: %w", err)
		}
	}
	return shareNoCore()
}

// shareNoCore puts this process and its children, with SCHED_CORE, which
// operators set in the daemon's environment, into a group that shares no core
// with others.
func shareNoCore() error {
	if os.Getenv("SCHED_CORE") == "" {
		return nil
	}
	err := unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, unix.PR_SCHED_CORE_SCOPE_PROCESS_GROUP, 0)
	if err != nil {
		return fmt.Errorf("SCHED_CORE: core scheduling: %w", err)
	}
	return nil
}

// startServing starts the process that takes over the listener.
func startServing(a Args, bundle, socket string, listener *os.File) error {
	cmd := serveCommand(a)
	cmd.Dir = bundle
	cmd.Stderr = nil // our caller reads ours to its end
	cmd.Env = append(os.Environ(), EnvSocket+"="+socket)
	cmd.ExtraFiles = append(cmd.ExtraFiles, listener)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	raiseOOMScore(cmd.Process.Pid, os.Getppid())
	return cmd.Process.Release()
}

// groupOf reads the group from the bundle's annotations.
func groupOf(bundle, id string) (string, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", fmt.Errorf("bundle without a spec: %w", err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", fmt.Errorf("config.json: %w", err)
	}
	for _, key := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if group := spec.Annotations[key]; group != "" {
			return group, nil
		}
	}
	return id, nil
}

// raiseOOMScore makes the shim one step likelier to be killed for memory than
// the daemon. It is a wish: without CAP_SYS_RESOURCE only raising is allowed.
func raiseOOMScore(pid, daemon int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", daemon))
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || score >= 1000 {
		return
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score+1)), 0)
}

// Delete is the action "delete": it removes what a shim that is gone has left
// of a container and prints how it ended.
func Delete(ctx context.Context, a Args, out io.Writer) error {
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	bundle := filepath.Join(filepath.Dir(cwd), a.ID)
	var o options.Options
	if data, err := os.ReadFile(filepath.Join(bundle, "options.json")); err == nil {
		if err := json.Unmarshal(data, &o); err != nil {
			return fmt.Errorf("options.json: %w", err)
		}
	}
	root := o.Root
	if root == "" {
		root = defaultRuntimeRoot
	}
	r := ociruntime.Runtime{
		Binary: o.BinaryName, Root: filepath.Join(root, a.Namespace), SystemdCgroup: o.SystemdCgroup,
		LogPath: filepath.Join(bundle, "log.json"),
	}
	err = r.Delete(ctx, a.ID, true)
	if errors.Is(err, errdefs.ErrNotFound) {
		err = nil
	}
	// The mounts are taken down even so; a retry finds fewer.
	if err := errors.Join(err, mount.Unmount(bundle), removeDeadSocket(bundle, a)); err != nil {
		return fmt.Errorf("delete container %q: %w", a.ID, err)
	}
	data, err := proto.Marshal(lastExit(bundle))
	if err != nil {
		return fmt.Errorf("encode the exit: %w", err)
	}
	_, err = out.Write(data)
	return err
}

// lastExit is what the bundle says of the exit, or that it was killed now.
func lastExit(bundle string) *taskAPI.DeleteResponse {
	var exit struct {
		Timestamp time.Time
		Pid       uint32
		Status    uint32
	}
	data, err := os.ReadFile(filepath.Join(bundle, "exit.json"))
	if err == nil {
		err = json.Unmarshal(data, &exit)
	}
	if err == nil && exit.Pid > 0 && !exit.Timestamp.IsZero() {
		return &taskAPI.DeleteResponse{Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: toTimestamp(exit.Timestamp)}
	}
	var pid uint64
	if data, err := os.ReadFile(filepath.Join(bundle, "init.pid")); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 31); err == nil {
			pid = n
		}
	}
	return &taskAPI.DeleteResponse{
		Pid: uint32(pid), ExitStatus: 128 + uint32(unix.SIGKILL), ExitedAt: toTimestamp(time.Now()),
	}
}

// Info is the action "-info": what this shim and its OCI runtime are. The
// runtime's options come as an Any on in. A runtime without features is no error.
func Info(ctx context.Context, name string, version *types.RuntimeVersion, in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(io.LimitReader(in, maxParams))
	if err != nil {
		return fmt.Errorf("runtime options: %w", err)
	}
	info := &types.RuntimeInfo{Name: name, Version: version}
	var o options.Options
	if len(data) > 0 {
		given := &anypb.Any{}
		if err := proto.Unmarshal(data, given); err != nil {
			return fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := unpack(fromAny(given), &o); err != nil {
			return err
		}
		info.Options = given
	}
	r := ociruntime.Runtime{Binary: o.BinaryName}
	if _, raw, err := r.Features(ctx); err == nil {
		info.Features = &anypb.Any{TypeUrl: featuresURL, Value: raw}
	}
	data, err = proto.Marshal(info)
	if err != nil {
		return fmt.Errorf("encode the runtime's information: %w", err)
	}
	_, err = out.Write(data)
	return err
}
