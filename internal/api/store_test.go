package api_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/storage"
)

const testNamespace = "test"

// daemon is a store behind a gRPC server, with containerd's client on it.
type daemon struct {
	t *testing.T
	*containerd.Client
	conn   *grpc.ClientConn
	store  *storage.Store
	events *exchange.Exchange
	// ctx has the namespace of the test.
	ctx context.Context
	// root is the root directory of the store, hosts that of registry hosts.
	root, hosts string
}

func startDaemon(t *testing.T) *daemon {
	t.Helper()
	return startDaemonIn(t, filepath.Join(t.TempDir(), "root"))
}

func startDaemonIn(t *testing.T, root string) *daemon {
	t.Helper()
	dir := t.TempDir()
	ex := exchange.NewExchange()
	store, err := storage.Open(t.Context(), storage.Config{Root: root, State: filepath.Join(dir, "state"), Publisher: ex})
	if err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(dir, "certs.d")
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize))
	containersapi.RegisterContainersServer(srv, api.NewContainers(store.Containers, ex))
	contentapi.RegisterContentServer(srv, api.NewContent(store.Content))
	imagesapi.RegisterImagesServer(srv, api.NewImages(store.Images, store.GC))
	snapshotsapi.RegisterSnapshotsServer(srv, api.NewSnapshots(store))
	leasesapi.RegisterLeasesServer(srv, api.NewLeases(store.Leases))
	namespacesapi.RegisterNamespacesServer(srv, api.NewNamespaces(store.Namespaces, ex))
	diffapi.RegisterDiffServer(srv, api.NewDiff(store.Diff))
	mountsapi.RegisterMountsServer(srv, api.NewMounts(store.Mounts))
	sandboxapi.RegisterStoreServer(srv, api.NewSandboxStore(store.Sandboxes))
	streamingapi.RegisterStreamingServer(srv, api.NewStreaming(store.Streams))
	eventsapi.RegisterEventsServer(srv, api.NewEvents(ex))
	transferapi.RegisterTransferServer(srv, api.NewTransfer(api.TransferConfig{
		Transferrer: store.Transfer, Streams: store.Streams, HostDir: hosts,
	}))

	sock := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		t.Fatal(err)
	}
	client, err := containerd.NewWithConn(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		srv.Stop()
		<-served
		if err := store.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return &daemon{
		t: t, Client: client, conn: conn, store: store, events: ex, root: root,
		ctx: namespaces.WithNamespace(t.Context(), testNamespace), hosts: hosts,
	}
}

// subscribe gives the events of the namespace from now on.
func (d *daemon) subscribe(ns string) <-chan *events.Envelope {
	ch, _ := d.events.Subscribe(d.t.Context(), "namespace=="+ns)
	return ch
}

// collect removes all that nothing refers to.
func (d *daemon) collect() {
	d.t.Helper()
	if _, err := d.store.GC.ScheduleAndWait(d.ctx); err != nil {
		d.t.Fatal(err)
	}
}

// checkEmpty fails the test if anything is left after a collection.
func (d *daemon) checkEmpty() {
	d.t.Helper()
	d.collect()
	if ls, err := d.LeasesService().List(d.ctx); err != nil || len(ls) > 0 {
		d.t.Errorf("leases left: %v %v", ls, err)
	}
	if is, err := d.ContentStore().ListStatuses(d.ctx); err != nil || len(is) > 0 {
		d.t.Errorf("ingests left: %v %v", is, err)
	}
	if blobs := d.blobs(); len(blobs) > 0 {
		d.t.Errorf("blobs left: %v", blobs)
	}
	for _, name := range []string{storage.Overlay, storage.Native} {
		if keys := d.snapshots(name); len(keys) > 0 {
			d.t.Errorf("snapshots of %s left: %v", name, keys)
		}
		dirs, err := os.ReadDir(filepath.Join(d.root, "io.containerd.snapshotter.v1."+name, "snapshots"))
		if err != nil || len(dirs) > 0 {
			d.t.Errorf("directories of %s left: %v %v", name, dirs, err)
		}
	}
	ingests, err := os.ReadDir(filepath.Join(d.root, "io.containerd.content.v1.content", "ingest"))
	if err != nil && !os.IsNotExist(err) || len(ingests) > 0 {
		d.t.Errorf("ingest directories left: %v %v", ingests, err)
	}
	if imgs := d.images(); len(imgs) > 0 {
		d.t.Errorf("images left: %v", imgs)
	}
}

func (d *daemon) blobs() (digests []string) {
	d.t.Helper()
	err := d.ContentStore().Walk(d.ctx, func(i content.Info) error {
		digests = append(digests, i.Digest.String())
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return digests
}

func (d *daemon) snapshots(name string) (keys []string) {
	d.t.Helper()
	err := d.SnapshotService(name).Walk(d.ctx, func(_ context.Context, i snapshots.Info) error {
		keys = append(keys, i.Name)
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return keys
}

func (d *daemon) images() (names []string) {
	d.t.Helper()
	list, err := d.ImageService().List(d.ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// removeImage removes an image and what only it held.
func (d *daemon) removeImage(name string) {
	d.t.Helper()
	if err := d.ImageService().Delete(d.ctx, name, images.SynchronousDelete()); err != nil {
		d.t.Fatal(err)
	}
}

// writeBlob stores data under a lease, if the context has one.
func (d *daemon) writeBlob(ctx context.Context, data []byte, opts ...content.Opt) content.Info {
	d.t.Helper()
	desc := descriptor("application/octet-stream", data)
	if err := content.WriteBlob(ctx, d.ContentStore(), "test-"+desc.Digest.String(), bytes.NewReader(data), desc, opts...); err != nil {
		d.t.Fatal(err)
	}
	info, err := d.ContentStore().Info(ctx, desc.Digest)
	if err != nil {
		d.t.Fatal(err)
	}
	return info
}
