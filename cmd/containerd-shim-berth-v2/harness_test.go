package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	eventsAPI "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/events"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
)

const limit = 30 * time.Second

// binary is the shim as it is shipped, but for the version.
var binary string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	// What a shim leaves behind becomes ours: we see that it ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if programs := os.Getenv("BERTH_TEST_PROGRAMS"); programs != "" {
		binary = filepath.Join(programs, "containerd-shim-berth-v2")
		return m.Run()
	}
	binary = filepath.Join(dir, "containerd-shim-berth-v2")
	build := exec.Command("go", "build", "-tags", "no_grpc", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the shim: %v\n%s", err, out)
		return 1
	}
	return faketest.Run(m)
}

// daemon is what a stock containerd is for its shims: a state directory with
// bundles, and a socket that takes events.
type daemon struct {
	t      *testing.T
	dir    string
	rootfs string
	wrap   []string // comes before the shim's command line
	// once is how berthd takes events.
	once *events.Once
	// stopEvents is the death of the daemon; serveEvents brings it back.
	stopEvents func()

	mu     sync.Mutex
	topics []string     // of the events, in order; guarded by mu
	told   []task.Event // the same; guarded by mu
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	// Short, because sockets are in it.
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir, rootfs: busyboxRootfs(t)}
	if d.once, err = events.OpenOnce(filepath.Join(dir, "forwarded"), publisher{d}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	d.serveEvents()
	t.Cleanup(func() {
		d.stopEvents()
		if err := d.once.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err) // something is still mounted
		}
	})
	return d
}

// serveEvents takes events, as a daemon does that has just started.
func (d *daemon) serveEvents() {
	d.t.Helper()
	srv, err := ttrpc.NewServer()
	if err != nil {
		d.t.Fatal(err)
	}
	eventsAPI.RegisterTTRPCEventsService(srv, d)
	l, err := net.Listen("unix", d.address()+".ttrpc")
	if err != nil {
		d.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	d.stopEvents = sync.OnceFunc(func() {
		if err := srv.Close(); err != nil {
			d.t.Error(err)
		}
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			d.t.Error(err)
		}
	})
}

func (d *daemon) Forward(ctx context.Context, r *eventsAPI.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, d.once.Forward(ctx, &coreevents.Envelope{
		Timestamp: r.Envelope.Timestamp.AsTime(), Namespace: r.Envelope.Namespace, Topic: r.Envelope.Topic, Event: r.Envelope.Event,
	})
}

// publisher is where the daemon's events come out, as its subscribers see them.
type publisher struct{ *daemon }

func (d publisher) Forward(_ context.Context, e *coreevents.Envelope) error {
	message, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.topics = append(d.topics, e.Topic)
	if e, ok := tasktest.DecodeEvent(e.Namespace, message); ok {
		d.told = append(d.told, e)
	}
	return nil
}

func (d *daemon) events() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.topics...)
}

func (d *daemon) taskEvents() []task.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]task.Event{}, d.told...)
}

func (d *daemon) address() string { return filepath.Join(d.dir, "d") }

// bundle makes a bundle as containerd does, with the FIFO for the shim's log.
func (d *daemon) bundle(id, script string, annotations map[string]string) string {
	d.t.Helper()
	bundle := filepath.Join(d.dir, id)
	spec := faketest.Spec("/bin/sh", "-c", script)
	for _, ns := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace} {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
	}
	spec.Linux.CgroupsPath = fmt.Sprintf("/berth-shim-%d-%s", os.Getpid(), id)
	spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}, // the root file system is shared
	}
	spec.Annotations = annotations
	faketest.WriteBundle(d.t, bundle, spec)
	if err := unix.Mkfifo(filepath.Join(bundle, "log"), 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		d.t.Fatal(err)
	}
	return bundle
}

// command is the shim's command as containerd runs it.
func (d *daemon) command(bundle string, env []string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	d.t.Cleanup(cancel)
	args = append([]string{"-namespace", "ns", "-address", d.address(), "-publish-binary", "/bin/false", "-id", filepath.Base(bundle)}, args...)
	args = append(append(slices.Clone(d.wrap), binary), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), append([]string{"TTRPC_ADDRESS=" + d.address() + ".ttrpc", "GRPC_ADDRESS=" + d.address(), "NAMESPACE=ns"}, env...)...)
	return cmd
}

// served is a shim that serves.
type served struct {
	*ttrpc.Client
	t      *testing.T
	pid    int
	socket string
	bundle string
	root   string // of the OCI runtime
	rootfs string
}

// guarded runs the action "guard", as Berth's daemon does, with the runtime's
// root and the bundles' directory that "start" has.
func (d *daemon) guarded() (s *served, guard int) {
	d.t.Helper()
	dir := filepath.Join(d.dir, "group", "ns", "g") // below it the shim finds its runtime's root
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	params, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID: "g", Namespace: "ns", SocketDir: proto.String(filepath.Join(d.dir, "s")),
	})
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(binary, "-namespace", "ns", "-address", d.address(), "-id", "g", "guard")
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(params), d.t.Output()
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+d.address()+".ttrpc", "BERTH_SHIM_LINGER=1m")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	var result bootstrap.BootstrapResult
	data, err := io.ReadAll(out)
	if err == nil {
		err = proto.Unmarshal(data, &result)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		await(d.t, "the end of the guard", func() bool { return reap(cmd.Process.Pid, 0) })
	})
	return d.connect("", result.Address), cmd.Process.Pid
}

// start runs the action "start" and connects to what it tells.
func (d *daemon) start(bundle string, env ...string) *served {
	d.t.Helper()
	params, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID: filepath.Base(bundle), Namespace: "ns", SocketDir: proto.String(filepath.Join(d.dir, "s")),
	})
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := d.command(bundle, env, "start")
	cmd.Stdin = bytes.NewReader(params)
	var result bootstrap.BootstrapResult
	if err := proto.Unmarshal(output(d.t, cmd), &result); err != nil {
		d.t.Fatal(err)
	}
	if result.Version != 3 || result.Protocol != "ttrpc" {
		d.t.Fatalf("%v", &result)
	}
	return d.connect(bundle, result.Address)
}

func output(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", cmd.Args, err, errs.String())
	}
	if errs.Len() > 0 {
		t.Errorf("%s wrote %q", cmd.Args, errs.String())
	}
	return out.Bytes()
}

func (d *daemon) connect(bundle, address string) *served {
	d.t.Helper()
	socket, ok := strings.CutPrefix(address, "unix://")
	if !ok {
		d.t.Fatalf("address %q", address)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		d.t.Fatal(err)
	}
	s := &served{
		Client: ttrpc.NewClient(conn), t: d.t, socket: socket, bundle: bundle,
		root: filepath.Join(d.dir, "runc"), rootfs: d.rootfs,
	}
	d.t.Cleanup(func() { s.Close() })
	var resp taskAPI.ConnectResponse
	s.must("Connect", &taskAPI.ConnectRequest{}, &resp)
	s.pid = int(resp.ShimPid)
	d.t.Cleanup(func() { reap(s.pid, unix.SIGKILL) })
	return s
}

func (s *served) call(method string, req, resp proto.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return errgrpc.ToNative(s.Call(ctx, "containerd.task.v3.Task", method, req, resp))
}

func (s *served) must(method string, req, resp proto.Message) {
	s.t.Helper()
	if err := s.call(method, req, resp); err != nil {
		s.t.Fatalf("%s: %v", method, err)
	}
}

// create creates the container of the bundle and returns its pid. It is gone
// when the test ends.
func (s *served) create(bundle string) int {
	s.t.Helper()
	o, err := typeurl.MarshalAnyToProto(&options.Options{Root: s.root})
	if err != nil {
		s.t.Fatal(err)
	}
	id := filepath.Base(bundle)
	var resp taskAPI.CreateTaskResponse
	s.t.Cleanup(func() {
		// A test that went well has left nothing to delete.
		exec.Command("runc", "--root", filepath.Join(s.root, "ns"), "delete", "--force", id).Run()
		unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH)
	})
	s.must("Create", &taskAPI.CreateTaskRequest{
		ID: id, Bundle: bundle, Stdout: "file://" + filepath.Join(bundle, "out"), Options: o,
		Rootfs: []*types.Mount{{Type: "bind", Source: s.rootfs, Options: []string{"rbind"}}},
	}, &resp)
	return int(resp.Pid)
}

// ended waits until the shim's process is gone, with its socket.
func (s *served) ended() {
	s.t.Helper()
	await(s.t, "the end of the shim", func() bool { return reap(s.pid, 0) })
	await(s.t, "the end of the socket", func() bool { // a guard removes it after the shim's end
		_, err := os.Lstat(s.socket)
		return errors.Is(err, os.ErrNotExist)
	})
}

// reap signals the process, if a signal is given, and says whether it is gone.
// Those whose parents have died are our children.
func reap(pid int, sig unix.Signal) bool {
	if sig != 0 {
		unix.Kill(pid, sig)
	}
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return errors.Is(err, unix.ECHILD) && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// openLog opens the FIFO of the bundle as containerd does, before the start.
func openLog(t *testing.T, bundle string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(bundle, "log"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mounted(t *testing.T, path string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+path+" ")
}

func encodeAny(t *testing.T, m proto.Message) io.Reader {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(data)
}

// busyboxRootfs is a root file system with a static shell.
func busyboxRootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "proc", "dev"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(dir, "bin", "busybox")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, applet := range []string{"sh", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}
