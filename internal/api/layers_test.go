package api_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/mount/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/storage"
	"github.com/berthd/berth/internal/testimage"
)

func TestSnapshotLifeAndEvents(t *testing.T) {
	for _, name := range []string{storage.Overlay, storage.Native} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			ctx, done, err := d.WithLease(d.ctx)
			if err != nil {
				t.Fatal(err)
			}
			ev := d.subscribe(testNamespace)
			sn := d.SnapshotService(name)
			mounts, err := sn.Prepare(ctx, "active", "", snapshots.WithLabels(map[string]string{"a": "1"}))
			if err != nil {
				t.Fatal(err)
			}
			if topic, e := next(t, ev); topic != "/snapshot/prepare" || e.(*eventstypes.SnapshotPrepare).Key != "active" {
				t.Errorf("event %s %v", topic, e)
			}
			if again, err := sn.Mounts(ctx, "active"); err != nil || len(again) != len(mounts) {
				t.Errorf("mounts %v %v, want %v", again, err, mounts)
			}
			write := func(root string) error { return os.WriteFile(filepath.Join(root, "file"), []byte("data"), 0o644) }
			if err := mount.WithTempMount(ctx, mounts, write); err != nil {
				t.Fatal(err)
			}
			if _, err := sn.Prepare(ctx, "active", ""); !errdefs.IsAlreadyExists(err) {
				t.Errorf("second prepare: %v, want AlreadyExists", err)
			}
			if err := sn.Commit(ctx, "committed", "active"); err != nil {
				t.Fatal(err)
			}
			if topic, e := next(t, ev); topic != "/snapshot/commit" || e.(*eventstypes.SnapshotCommit).Name != "committed" {
				t.Errorf("event %s %v", topic, e)
			}
			info, err := sn.Update(ctx, snapshots.Info{Name: "committed", Labels: map[string]string{"b": "2"}}, "labels.b")
			if err != nil || info.Labels["b"] != "2" {
				t.Errorf("update %v %v", info, err)
			}
			if info, err := sn.Stat(ctx, "committed"); err != nil || info.Kind != snapshots.KindCommitted || info.Labels["b"] != "2" {
				t.Errorf("stat %v %v", info, err)
			}
			if u, err := sn.Usage(ctx, "committed"); err != nil || u.Size == 0 {
				t.Errorf("usage %v %v, want some", u, err)
			}
			if _, err := sn.View(ctx, "view", "committed"); err != nil {
				t.Fatal(err)
			}
			if err := sn.Remove(ctx, "committed"); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("remove of a parent: %v, want FailedPrecondition", err)
			}
			for _, key := range []string{"view", "committed"} {
				if err := sn.Remove(ctx, key); err != nil {
					t.Fatal(err)
				}
			}
			if err := sn.Remove(ctx, "committed"); !errdefs.IsNotFound(err) {
				t.Errorf("second remove: %v, want NotFound", err)
			}
			if err := done(d.ctx); err != nil {
				t.Fatal(err)
			}
			d.checkEmpty()
		})
	}
}

// The database's snapshotters leave the clean-up to the collector.
func TestCleanupOfSnapshotsIsTheCollectors(t *testing.T) {
	d := startDaemon(t)
	_, err := snapshotsapi.NewSnapshotsClient(d.conn).Cleanup(outgoing(d.ctx), &snapshotsapi.CleanupRequest{Snapshotter: storage.Overlay})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("error %v, want Unimplemented", err)
	}
}

func TestDiffAndApply(t *testing.T) {
	d := startDaemon(t)
	ctx, done, err := d.WithLease(d.ctx)
	if err != nil {
		t.Fatal(err)
	}
	sn := d.SnapshotService(storage.Overlay)
	layer := d.layer(ctx, []testimage.File{{Name: "kept", Data: []byte("kept")}, {Name: "gone", Data: []byte("gone")}})
	base, err := sn.Prepare(ctx, "base-active", "")
	if err != nil {
		t.Fatal(err)
	}
	applied, err := d.DiffService().Apply(ctx, layer, base, diff.WithSyncFs(true))
	if err != nil {
		t.Fatal(err)
	}
	if applied.MediaType != ocispec.MediaTypeImageLayer || applied.Digest == layer.Digest {
		t.Errorf("applied %v, want the layer without its compression", applied)
	}
	if err := sn.Commit(ctx, "base", "base-active"); err != nil {
		t.Fatal(err)
	}

	lower, err := sn.View(ctx, "lower", "base")
	if err != nil {
		t.Fatal(err)
	}
	upper, err := sn.Prepare(ctx, "upper", "base")
	if err != nil {
		t.Fatal(err)
	}
	err = mount.WithTempMount(ctx, upper, func(root string) error {
		if err := os.WriteFile(filepath.Join(root, "new"), []byte("new"), 0o644); err != nil {
			return err
		}
		return os.Remove(filepath.Join(root, "gone"))
	})
	if err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(1700000000, 0).UTC()
	made := make([]ocispec.Descriptor, 2)
	for i := range made {
		made[i], err = d.DiffService().Compare(ctx, lower, upper,
			diff.WithMediaType(ocispec.MediaTypeImageLayerGzip), diff.WithReference("diff"),
			diff.WithLabels(map[string]string{"a": "1"}), diff.WithSourceDateEpoch(&epoch))
		if err != nil {
			t.Fatal(err)
		}
	}
	if made[0].Digest != made[1].Digest {
		t.Error("the same difference gave two digests")
	}
	if info, err := d.ContentStore().Info(ctx, made[0].Digest); err != nil || info.Labels["a"] != "1" {
		t.Errorf("diff is stored as %v %v", info, err)
	}

	copied, err := sn.Prepare(ctx, "copy", "base")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.DiffService().Apply(ctx, made[0], copied); err != nil {
		t.Fatal(err)
	}
	err = mount.WithTempMount(ctx, copied, func(root string) error {
		if got, err := os.ReadFile(filepath.Join(root, "new")); err != nil || string(got) != "new" {
			t.Errorf("new: %q %v", got, err)
		}
		if _, err := os.Stat(filepath.Join(root, "gone")); !os.IsNotExist(err) {
			t.Errorf("gone: %v, want no such file", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := done(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.checkEmpty()
}

// layer stores a gzip layer of the files.
func (d *daemon) layer(ctx context.Context, files []testimage.File) ocispec.Descriptor {
	d.t.Helper()
	l, err := testimage.NewLayer(files)
	if err != nil {
		d.t.Fatal(err)
	}
	r, err := l.Compressed()
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(r); err != nil {
		d.t.Fatal(err)
	}
	desc := descriptor(ocispec.MediaTypeImageLayerGzip, buf.Bytes())
	if err := content.WriteBlob(ctx, d.ContentStore(), "layer", &buf, desc); err != nil {
		d.t.Fatal(err)
	}
	return desc
}

func TestApplyFailures(t *testing.T) {
	d := startDaemon(t)
	ctx, done, err := d.WithLease(d.ctx)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := d.SnapshotService(storage.Overlay).Prepare(ctx, "target", "")
	if err != nil {
		t.Fatal(err)
	}
	missing := descriptor(ocispec.MediaTypeImageLayerGzip, []byte("nowhere"))
	if _, err := d.DiffService().Apply(ctx, missing, mounts); !errdefs.IsNotFound(err) {
		t.Errorf("missing blob: %v, want NotFound", err)
	}
	bad := []byte("neither gzip nor tar")
	desc := descriptor(ocispec.MediaTypeImageLayerGzip, bad)
	if err := content.WriteBlob(ctx, d.ContentStore(), "bad", bytes.NewReader(bad), desc); err != nil {
		t.Fatal(err)
	}
	if _, err := d.DiffService().Apply(ctx, desc, mounts); err == nil {
		t.Error("a blob that is no archive was applied")
	}
	desc.MediaType = "text/plain"
	if _, err := d.DiffService().Apply(ctx, desc, mounts); err == nil || !strings.Contains(err.Error(), "text/plain") {
		t.Errorf("unknown media type: %v, want an error that names it", err)
	}
	if err := done(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.checkEmpty()
}

func TestContentIsChecked(t *testing.T) {
	d := startDaemon(t)
	ctx, done, err := d.WithLease(d.ctx)
	if err != nil {
		t.Fatal(err)
	}
	cs := d.ContentStore()
	data := []byte("some content")
	desc := descriptor("text/plain", data)
	wrong := desc
	wrong.Digest = descriptor("text/plain", []byte("other content")).Digest
	if err := content.WriteBlob(ctx, cs, "w", bytes.NewReader(data), wrong); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("wrong digest: %v, want FailedPrecondition", err)
	}
	if err := cs.Abort(ctx, "w"); err != nil && !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	info := d.writeBlob(ctx, data, content.WithLabels(map[string]string{"a": "1"}))
	info.Labels = map[string]string{"b": "2"}
	if got, err := cs.Update(ctx, info, "labels.b"); err != nil || got.Labels["a"] != "1" || got.Labels["b"] != "2" {
		t.Errorf("update %v %v", got, err)
	}
	if got, err := content.ReadBlob(ctx, cs, desc); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %q %v", got, err)
	}
	if err := cs.Delete(ctx, info.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := cs.Info(ctx, info.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("info after delete: %v, want NotFound", err)
	}
	if err := done(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.checkEmpty()
}

func TestMountsActivatedByTheDaemon(t *testing.T) {
	d := startDaemon(t)
	l, err := d.LeasesService().Create(d.ctx, leases.WithID("mounts"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := leases.WithLease(d.ctx, l.ID)
	mm := proxy.NewMountManager(mountsapi.NewMountsClient(d.conn))
	plain := []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind", "ro"}}}
	if _, err := mm.Activate(ctx, "plain", plain); !errdefs.IsNotImplemented(err) {
		t.Errorf("a plain mount: %v, want NotImplemented", err)
	}
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The second mount is built on where the first one is.
	info, err := mm.Activate(ctx, "chain", []mount.Mount{
		{Type: "bind", Source: src, Options: []string{"rbind"}},
		{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rbind", "ro"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Active) != 1 || len(info.System) != 1 {
		t.Fatalf("activation %+v, want one mount done and one to do", info)
	}
	if got, err := os.ReadFile(filepath.Join(info.System[0].Source, "file")); err != nil || string(got) != "data" {
		t.Errorf("file below %s: %q %v", info.System[0].Source, got, err)
	}
	if got, err := mm.Info(ctx, "chain"); err != nil || got.Name != "chain" {
		t.Errorf("info %v %v", got, err)
	}
	if list, err := mm.List(ctx); err != nil || len(list) != 1 {
		t.Errorf("list %v %v", list, err)
	}
	// The lease holds the mount: it goes with it.
	if err := d.LeasesService().Delete(d.ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if _, err := mm.Info(d.ctx, "chain"); !errdefs.IsNotFound(err) {
		t.Errorf("info after the lease: %v, want NotFound", err)
	}
	if _, err := os.Stat(filepath.Join(info.Active[0].MountPoint, "file")); !os.IsNotExist(err) {
		t.Errorf("mount point after the lease: %v, want nothing there", err)
	}
}

func TestStreamEndsWithItsClient(t *testing.T) {
	d := startDaemon(t)
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	if _, err := streamproxy.NewStreamCreator(d.conn).Create(ctx, "s"); err != nil {
		t.Fatal(err)
	}
	st, err := d.store.Streams.Get(d.ctx, "s")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, "the stream to go", func() bool {
		_, err := d.store.Streams.Get(d.ctx, "s")
		return errdefs.IsNotFound(err)
	})
	if _, err := st.Recv(); err == nil {
		t.Error("a stream without its client still receives")
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}

func TestStreamWithoutAName(t *testing.T) {
	d := startDaemon(t)
	conn, err := streamingapi.NewStreamingClient(d.conn).Stream(outgoing(d.ctx))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Send(&anypb.Any{TypeUrl: "google.protobuf.Empty"}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Recv(); err == nil {
		t.Error("a stream whose first message has no name was accepted")
	}
}
