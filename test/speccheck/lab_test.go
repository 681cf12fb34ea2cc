package speccheck

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/test/harness"
)

// A use is one thing that a spec asks for.
type use struct {
	name string
	// path is the JSON path of the member that asks.
	path string
	// spec are fragments that are merged into the base spec.
	spec []string
	// text are pairs of text, old and new, replaced in the spec's JSON: for
	// what a decoder would not keep.
	text []string
	// probe is a script for the container's shell. Its output matches want
	// when the use was done. It may print what it likes otherwise, but comes
	// to its end.
	probe, want string
	// prepare, when set, makes on the host what the use needs, in the use's
	// own directory, $DIR in spec and probe.
	prepare func(t *testing.T, dir string)
	// after, when set, looks from the host whether the use was done.
	after func(dir string) bool
	// by lists the runtimes that do it, on a host that has what it needs.
	// Empty means all.
	by []string
	// execBy and updateBy say it for the process of an exec and for an update,
	// where that differs.
	execBy, updateBy []string
	// execWarned and updateWarned list runtimes that do not do it, where berthd
	// warns and lets it pass, as what is lost does no harm.
	execWarned, updateWarned []string
	// fails lists runtimes that say no by themselves, which nothing tells before.
	fails []string
	// needs, when set, says what this host lacks, or nothing.
	needs func() string
}

// outcome is what became of a use.
type outcome string

const (
	done    outcome = "done"    // the container ran, and the effect was there
	ignored outcome = "ignored" // the container ran as if nothing had been asked
	late    outcome = "late"    // the OCI runtime was run, and failed
	refused outcome = "refused" // the daemon said no before the OCI runtime was run
)

// A lab runs uses under one daemon.
type lab struct {
	daemon *harness.Daemon
	client *containerd.Client
	rootfs string
}

func newLab(t *testing.T, config harness.Config) *lab {
	t.Helper()
	config.NoImage = true
	d := harness.Start(t, config)
	return &lab{daemon: d, client: d.Client(t), rootfs: rootfs(t)}
}

// rootfs makes the root directory that all containers of a lab share.
func rootfs(t *testing.T) string {
	t.Helper()
	root := harness.Rootfs(t)
	open(t, root)
	for _, dir := range []string{"m", "m2", "cgroup", "full"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, applet := range []string{
		"awk", "cat", "grep", "head", "hostname", "id", "ionice", "ls", "mkdir", "mknod", "sed", "stat", "taskset", "uname", "wc",
	} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "full", "file"), []byte("below\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

// shortDir makes a directory of the test's that other users of the host may
// pass. Its path is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sc-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	open(t, dir)
	return dir
}

// open lets other users of the host pass through a test's own directory.
func open(t *testing.T, dir string) {
	t.Helper()
	for ; filepath.Dir(dir) != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// A runtime is an OCI runtime behind a script that keeps a list of its calls.
type runtime struct {
	name   string // a name of the column by in the table
	binary string
	calls  string
}

// newRuntime makes the script; exec is the command in it that becomes the
// runtime.
func newRuntime(t *testing.T, name, binary, exec string) *runtime {
	t.Helper()
	dir := t.TempDir()
	r := &runtime{name: name, binary: filepath.Join(dir, filepath.Base(binary)), calls: filepath.Join(dir, "calls")}
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%s\nexec %s \"$@\"\n", r.calls, exec)
	if err := os.WriteFile(r.binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

// runtimes are Debian's runc, runc as the peers' module pins it, and Debian's
// crun. Debian's crun refuses to run where cgroup v1 and v2 are both mounted:
// it runs in a mount namespace without v2.
func (l *lab) runtimes(t *testing.T) []*runtime {
	t.Helper()
	old, recent, crun := program(t, "runc"), filepath.Join(filepath.Dir(l.daemon.Programs.Ctr), "runc"), program(t, "crun")
	return []*runtime{
		newRuntime(t, "runc-1.1", old, old),
		newRuntime(t, "runc-1.5", recent, recent),
		newRuntime(t, "crun", crun, `unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$0" "$@"' `+crun),
	}
}

// ran says whether the runtime was called for a container, with that subcommand.
func (r *runtime) ran(t *testing.T, subcommand, id string) bool {
	t.Helper()
	return strings.Contains(r.calledFor(t, id), " "+subcommand+" ")
}

// calledFor returns the runtime's calls for a container, a line each.
func (r *runtime) calledFor(t *testing.T, id string) string {
	t.Helper()
	calls, err := os.ReadFile(r.calls)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var found strings.Builder
	for line := range strings.Lines(string(calls)) {
		if strings.HasSuffix(line, " "+id+"\n") {
			found.WriteString(line)
		}
	}
	return found.String()
}

// probeEnd is printed by a probe that comes to its end.
const probeEnd = "end of probe"

// A trial is one use with one runtime.
type trial struct {
	id      string // of the container
	outcome outcome
	err     error  // of create, start, exec or update
	output  string // of the probe
}

func (r trial) String() string {
	return fmt.Sprintf("%s; error: %v; output: %q", r.outcome, r.err, r.output)
}

// A place is where a use is tried: its directory and its names.
type place struct {
	id, dir, log string
	names        []string // pairs for the specs
}

func (l *lab) place(t *testing.T, r *runtime, u *use, what string) *place {
	t.Helper()
	dir := shortDir(t)
	if u.prepare != nil {
		u.prepare(t, dir)
	}
	mayCall, err := calls()
	if err != nil {
		t.Fatal(err)
	}
	id := l.daemon.ID(strings.Trim(notWord.ReplaceAllString(what+u.name, "-"), "-") + "-" + r.name)
	return &place{id: id, dir: dir, log: filepath.Join(dir, "log"), names: []string{
		"$DIR", dir, "$ROOTFS", l.rootfs, "$NAMESPACE", l.daemon.Namespace, "$ID", id, "$TAG", tag(dir), "$CALLS", mayCall,
	}}
}

var notWord = regexp.MustCompile(`[^A-Za-z0-9]+`)

// limit bounds the life of one container.
const limit = 2 * time.Minute

func (l *lab) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(namespaces.WithNamespace(context.Background(), l.daemon.Namespace), limit)
}

func (u *use) command() []string { return []string{"sh", "-c", u.probe + "\necho " + probeEnd} }

// try runs a container that asks for a use, and says what became of it.
func (l *lab) try(t *testing.T, r *runtime, u *use) trial {
	t.Helper()
	p := l.place(t, r, u, "")
	spec, err := u.build(u.command(), p.names...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := l.context()
	defer cancel()
	if err := l.run(ctx, t, r, p, spec); err != nil {
		if !r.ran(t, "create", p.id) {
			return trial{outcome: refused, err: err}
		}
		return trial{outcome: late, err: err}
	}
	return u.look(t, p, p.id)
}

// look says what came of a use whose probe has run.
func (u *use) look(t *testing.T, p *place, container string) trial {
	t.Helper()
	output, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	result := trial{id: container, outcome: ignored, output: string(output)}
	if !strings.Contains(result.output, probeEnd) {
		t.Fatalf("the probe did not come to its end: %q", result.output)
	}
	if regexp.MustCompile(u.want).MatchString(result.output) && (u.after == nil || u.after(p.dir)) {
		result.outcome = done
	}
	return result
}

// run runs a container to its end. An error is one of create or start.
func (l *lab) run(ctx context.Context, t *testing.T, r *runtime, p *place, spec []byte) error {
	t.Helper()
	container := l.container(ctx, t, r, p.id, spec)
	defer func() {
		if err := container.Delete(ctx); err != nil {
			t.Error(err)
		}
	}()
	task, err := container.NewTask(ctx, cio.LogFile(p.log))
	if err != nil {
		return err
	}
	defer func() {
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
	}()
	exit, err := task.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		return err
	}
	if status := <-exit; status.Error() != nil {
		t.Fatal(status.Error())
	}
	return nil
}

func (l *lab) container(ctx context.Context, t *testing.T, r *runtime, id string, spec []byte) containerd.Container {
	t.Helper()
	runtimeOptions, err := typeurl.MarshalAnyToProto(&options.Options{BinaryName: r.binary})
	if err != nil {
		t.Fatal(err)
	}
	container, err := l.client.NewContainer(ctx, id, func(_ context.Context, _ *containerd.Client, c *containers.Container) error {
		c.Runtime = containers.RuntimeInfo{Name: "io.containerd.runc.v2", Options: runtimeOptions}
		c.Spec = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: spec}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return container
}

// program finds a program that scripts/deps installs.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed, scripts/deps test installs it: %v", name, err)
	}
	return path
}

// owner returns the owner of a file on the host.
func owner(path string) (uid, gid uint32) {
	var st syscall.Stat_t
	if syscall.Lstat(path, &st) != nil {
		return ^uint32(0), ^uint32(0)
	}
	return st.Uid, st.Gid
}
