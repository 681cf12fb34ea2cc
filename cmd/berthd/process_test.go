package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// connect gives a client of the daemon and a context in a namespace.
func (d *daemon) connect(t *testing.T) (context.Context, *client.Client) {
	t.Helper()
	c, err := client.New(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "default"), patience)
	t.Cleanup(cancel)
	return ctx, c
}

func TestPlaceOnTheHost(t *testing.T) {
	dir := shortDir(t)
	group := fmt.Sprintf("/berthd-test-%d", os.Getpid())
	if cgroups.Mode() == cgroups.Unified {
		made := filepath.Join("/sys/fs/cgroup", group)
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(made); err != nil {
				t.Error(err)
			}
		})
	} else {
		t.Cleanup(func() {
			cg, err := cgroup1.Load(cgroup1.StaticPath(group))
			if err == nil {
				err = cg.Delete()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	temp := filepath.Join(dir, "tmp", "of", "berth")
	d := start(t, dir, "--config", writeConfig(t, fmt.Sprintf("oom_score = 321\ncgroup = %q\ntemp = %q\n", group, temp)))
	proc := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	if score, err := os.ReadFile(proc + "oom_score_adj"); err != nil || strings.TrimSpace(string(score)) != "321" {
		t.Errorf("oom_score_adj is %q, %v", score, err)
	}
	if in, err := os.ReadFile(proc + "cgroup"); err != nil || !strings.Contains(string(in), group+"\n") {
		t.Errorf("the daemon is in cgroups %s, %v, not in %s", in, err, group)
	}
	if info, err := os.Stat(temp); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the temporary directory is %v, %v", info, err)
	}
	// The cgroup can be removed only when nobody is in it.
	_ = d.cmd.Process.Kill() // it may have ended
	d.end(t)
}

// A layer of a media type that only the configured program can read is
// extracted as any other.
func TestStreamProcessor(t *testing.T) {
	const odd = "application/vnd.example.layer.odd"
	dir := shortDir(t)
	d := start(t, dir, "--config", writeConfig(t, fmt.Sprintf(
		"[stream_processors.odd]\naccepts = [%q]\nreturns = %q\npath = 'gzip'\nargs = ['-dc']\n", odd, ocispec.MediaTypeImageLayer)))
	ctx, c := d.connect(t)
	var layer bytes.Buffer
	z := gzip.NewWriter(&layer)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o644, Size: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("odd")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: odd, Digest: digest.FromBytes(layer.Bytes()), Size: int64(layer.Len())}
	ctx, done, err := c.WithLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = done(ctx) }()
	if err := content.WriteBlob(ctx, c.ContentStore(), "odd", bytes.NewReader(layer.Bytes()), desc); err != nil {
		t.Fatal(err)
	}
	mounts, err := c.SnapshotService("native").Prepare(ctx, "odd", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.DiffService().Apply(ctx, desc, mounts); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(mounts[0].Source, "hello")); err != nil || string(data) != "odd" {
		t.Errorf("the file of the layer is %q, %v", data, err)
	}
}

// A snapshotter of another process is one of the daemon's from the moment that
// the process serves.
func TestProxySnapshotter(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "other.sock")
	d := start(t, dir, "--config", writeConfig(t, fmt.Sprintf(
		"[snapshotter]\ndefault = 'other'\n[snapshotter.proxies.other]\naddress = %q\ncapabilities = ['odd']\nexports = {kind = 'test'}\n", socket)))
	ctx, c := d.connect(t)
	sn := c.SnapshotService("other")
	if _, err := sn.Prepare(ctx, "early", ""); !errdefs.IsUnavailable(err) {
		t.Errorf("before the process serves: %v, want unavailable", err)
	}
	plugins, err := c.IntrospectionService().Plugins(ctx, "id==other")
	if err != nil || len(plugins.Plugins) != 1 {
		t.Fatalf("plugins %v, %v", plugins, err)
	}
	if p := plugins.Plugins[0]; p.Type != "io.containerd.snapshotter.v1" || p.Exports["kind"] != "test" || p.Exports["address"] != socket ||
		len(p.Capabilities) != 1 || p.InitErr != nil {
		t.Errorf("clients are told %v", p)
	}

	backend, err := native.NewSnapshotter(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(backend))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := backend.Close(); err != nil {
			t.Error(err)
		}
	})
	var mounts []mount.Mount
	d.poll(t, "uses the process", func() bool {
		mounts, err = sn.Prepare(ctx, "active", "")
		return err == nil || !errdefs.IsUnavailable(err)
	})
	if err != nil || len(mounts) != 1 || !strings.HasPrefix(mounts[0].Source, filepath.Join(dir, "other")+"/") {
		t.Fatalf("mounts %v, %v", mounts, err)
	}
	if err := sn.Commit(ctx, "done", "active"); err != nil {
		t.Fatal(err)
	}
	if info, err := sn.Stat(ctx, "done"); err != nil || info.Name != "done" {
		t.Errorf("stat: %v, %v", info, err)
	}
	if err := sn.Remove(ctx, "done"); err != nil {
		t.Error(err)
	}
}
