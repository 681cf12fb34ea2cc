package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// TestCLIFiles looks at the files that options of run name.
func TestCLIFiles(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) string {
		t.Helper()
		data, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	id := d.ID("files")
	d.MustBerth(t, "run", "-d", "--name", id, "--cidfile", file("cid"), "--pid-file", file("pid"), "--runc-root", file("runc"), harness.Image, "sleep", "1000")
	if got := read(file("cid")); got != id {
		t.Errorf("cidfile: %q", got)
	}
	if got := read(file("pid")); got != strconv.Itoa(d.TaskPID(t, id)) {
		t.Errorf("pid file: %q", got)
	}
	read(filepath.Join(file("runc"), d.Namespace, id, "state.json"))
	// A file that is there is another container's.
	checkOneLine(t, d.Berth(t, "run", "-d", "--cidfile", file("cid"), harness.Image, "true"), 125, file("cid"), "remove it")
	if out := d.MustBerth(t, "ps", "-aq"); out != id+"\n" {
		t.Errorf("containers: %q", out)
	}
	d.MustBerth(t, "rm", "-f", id)

	p := d.Spawn(t, d.Programs.Berth, "run", "--rm", "-i", "--name", id, "--fifo-dir", file("fifos"), harness.Image, "cat")
	p.Type(t, "line\n")
	p.AwaitOutput(t, "line\n")
	if found, _ := filepath.Glob(filepath.Join(file("fifos"), "*", id+"-std*")); len(found) != 3 {
		t.Errorf("FIFOs: %v", found)
	}
	p.CloseStdin(t)
	if r := p.Wait(t); r.Code != 0 {
		t.Error(r)
	}
	if left, err := os.ReadDir(file("fifos")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	uri := "file://" + file("log")
	if r := d.Berth(t, "run", "--rm", "--log-uri", uri, harness.Image, "sh", "-c", "echo out; echo err >&2; exit 3"); r.Code != 3 || r.Stdout != "" || r.Stderr != "" {
		t.Error(r)
	}
	if got := read(file("log")); got != "out\nerr\n" {
		t.Errorf("log: %q", got)
	}

	write(t, file("profile"), `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`)
	out := d.MustBerth(t, "run", "--rm", "--seccomp-profile", file("profile"), harness.Image, "sh", "-c", "mkdir /x 2>&1 || touch /y && ls /y")
	if !strings.Contains(out, "not implemented") || !strings.HasSuffix(out, "/y\n") {
		t.Errorf("under the profile: %q", out)
	}
}

// TestCLISnapshotter takes another snapshotter, and labels the snapshot.
func TestCLISnapshotter(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("snap")
	d.MustBerth(t, "create", "--name", id, "--snapshotter", "native", "--snapshotter-label", "a=b", "--snapshotter-label", "c", harness.Image,
		"sh", "-c", "grep -c '^overlay / ' /proc/mounts")
	ctx := namespaces.WithNamespace(context.Background(), d.Namespace)
	info, err := d.Client(t).SnapshotService("native").Stat(ctx, id)
	if err != nil || info.Labels["a"] != "b" || info.Labels["c"] != "true" {
		t.Errorf("%+v, %v", info, err)
	}
	if r := d.Berth(t, "start", "-a", id); r.Stdout != "0\n" {
		t.Errorf("its root is an overlay: %s", r)
	}
	d.MustBerth(t, "rm", id)
	d.MustBerth(t, "create", "--name", id, "--runtime", "io.example.other.v1", "--runtime-config-path", "/etc/other", harness.Image, "true")
	c, err := d.Client(t).ContainerService().Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	var opts runtimeoptions.Options
	if err := typeurl.UnmarshalTo(c.Runtime.Options, &opts); err != nil || opts.ConfigPath != "/etc/other" {
		t.Errorf("%+v, %v", &opts, err)
	}
	d.MustBerth(t, "rm", id)
	checkOneLine(t, d.Berth(t, "run", "--platform", "linux/s390x", harness.Image, "true"), 125, "linux/s390x", "linux/"+goruntime.GOARCH)
}

// TestCLIPull fetches the image of run as --pull says.
func TestCLIPull(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	name := testimage.NewRegistry(t).Host + "/pulled:1"
	d.MustBerth(t, "push", "-q", harness.Image, name)
	checkOneLine(t, d.Berth(t, "run", "--pull", "never", name, "true"), 125, name, "not found")
	for _, when := range []string{"missing", "always"} {
		if out := d.MustBerth(t, "run", "--rm", "--pull", when, name, "echo", "here"); out != "here\n" {
			t.Errorf("--pull %s: %q", when, out)
		}
	}
	d.MustBerth(t, "run", "--rm", "--pull", "never", name, "true")
	// Always means also when it is here: the name then stands for something else.
	other := testimage.Archive(t, "berth.test/other:1", testimage.Config{Layers: [][]testimage.File{{{Name: "only", Data: []byte("in the new one\n")}}}})
	d.MustBerth(t, "import", other)
	d.MustBerth(t, "push", "-q", "berth.test/other:1", name)
	if r := d.Berth(t, "run", "--rm", "--pull", "missing", name, "cat", "/only"); r.Code != 1 {
		t.Errorf("--pull missing takes the new image: %s", r)
	}
	if out := d.MustBerth(t, "run", "--rm", "--pull", "always", name, "cat", "/only"); out != "in the new one\n" {
		t.Errorf("--pull always: %q", out)
	}
}

// TestCLIStopTimeout kills a program that takes longer than it may.
func TestCLIStopTimeout(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	for timeout, want := range map[string]string{"0": "137\n", "60": "3\n"} {
		id := d.ID("stop" + timeout)
		d.MustBerth(t, "run", "-d", "--name", id, "--stop-timeout", timeout, harness.Image,
			"sh", "-c", `trap 'i=0; while [ $i -lt 100 ]; do i=$((i+1)); sleep 0.1; done; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
		harness.Await(t, 30*time.Second, "a start", func() bool { return d.MustBerth(t, "logs", id) == "ready\n" })
		d.MustBerth(t, "stop", id)
		if out := d.MustBerth(t, "wait", id); out != want {
			t.Errorf("--stop-timeout %s: %q, want %q", timeout, out, want)
		}
		d.MustBerth(t, "rm", id)
	}
}

// TestCLISystemdCgroup sees what the OCI runtime is called with; the machine's
// init need not be systemd.
func TestCLISystemdCgroup(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	runtime, calls := filepath.Join(dir, "runc"), filepath.Join(dir, "calls")
	write(t, runtime, fmt.Sprintf(`#!/bin/sh
echo "$*" >>%s
for arg do
	shift
	[ "$arg" = --systemd-cgroup ] || set -- "$@" "$arg"
done
exec %s "$@"
`, calls, d.Programs.Runc))
	if err := os.Chmod(runtime, 0o755); err != nil {
		t.Fatal(err)
	}
	// With the other driver the three words are a directory's name.
	r := d.Berth(t, "run", "--rm", "--runc-binary", runtime, "--runc-systemd-cgroup", "--cgroup", d.Namespace+"/a.slice:b:c", harness.Image, "echo", "here")
	if r.Code != 0 || r.Stdout != "here\n" {
		t.Fatal(r)
	}
	text, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " create ") && !strings.Contains(line, "--systemd-cgroup") {
			t.Errorf("called with %q", line)
		}
	}
	if !strings.Contains(string(text), " create ") {
		t.Errorf("calls: %q", text)
	}
}

// rawCodec passes gRPC messages through as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// spy serves the daemon's API on another socket, and calls seen for every
// request of a method.
func spy(t *testing.T, d *harness.Daemon, method string, seen func(request []byte)) (address string) {
	t.Helper()
	address = filepath.Join(d.Dir, "spy.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	pass := func(_ any, in grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(in.Context())
		name, _ := grpc.MethodFromServerStream(in)
		out, err := conn.NewStream(metadata.NewOutgoingContext(in.Context(), md), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name)
		if err != nil {
			return err
		}
		go func() { // until the client's side or the call ends
			var msg []byte
			for in.RecvMsg(&msg) == nil {
				if name == method {
					seen(msg)
				}
				if out.SendMsg(&msg) != nil {
					return
				}
			}
			_ = out.CloseSend()
		}()
		for {
			var msg []byte
			err := out.RecvMsg(&msg)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = in.SendMsg(&msg)
			}
			if err != nil {
				return err
			}
		}
	}
	server := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(pass))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	})
	return address
}

// TestCLISyncFS looks at what the daemon is asked when layers are unpacked.
func TestCLISyncFS(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	d.MustBerth(t, "import", testimage.Archive(t, "berth.test/other:1", testimage.Config{Layers: [][]testimage.File{{{Name: "only"}}}}))
	var mu sync.Mutex
	var synced []bool // guarded by mu
	address := spy(t, d, "/containerd.services.diff.v1.Diff/Apply", func(request []byte) {
		var r diffapi.ApplyRequest
		if err := proto.Unmarshal(request, &r); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		synced = append(synced, r.SyncFs)
	})
	// A snapshotter that has no layer yet; the second image has the first one's.
	d.MustBerth(t, "--address", address, "run", "--rm", "--snapshotter", "native", harness.Image, "true")
	d.MustBerth(t, "--address", address, "run", "--rm", "--snapshotter", "native", "--sync-fs", "berth.test/other:1", "true")
	mu.Lock()
	defer mu.Unlock()
	if len(synced) != 2 || synced[0] || !synced[1] {
		t.Errorf("layers that were written to the disk: %v, want the second", synced)
	}
}
