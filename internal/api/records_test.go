package api_test

import (
	"context"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// next waits for the next event.
func next(t *testing.T, ch <-chan *events.Envelope) (topic string, event any) {
	t.Helper()
	select {
	case e := <-ch:
		v, err := typeurl.UnmarshalAny(e.Event)
		if err != nil {
			t.Fatal(err)
		}
		return e.Topic, v
	case <-time.After(10 * time.Second):
		t.Fatal("no event within 10 s")
		return "", nil
	}
}

func TestContainersAndTheirEvents(t *testing.T) {
	d := startDaemon(t)
	store := d.ContainerService()
	ev := d.subscribe(testNamespace)
	record := containers.Container{
		ID:      "one",
		Labels:  map[string]string{"a": "1"},
		Image:   "img",
		Runtime: containers.RuntimeInfo{Name: "io.containerd.berth.v2"},
		Spec:    &anypb.Any{TypeUrl: "spec", Value: []byte("{}")},
	}
	created, err := store.Create(d.ctx, record)
	if err != nil {
		t.Fatal(err)
	}
	if created.CreatedAt.IsZero() || created.Labels["a"] != "1" {
		t.Errorf("created %+v", created)
	}
	topic, e := next(t, ev)
	if c, ok := e.(*eventstypes.ContainerCreate); topic != "/containers/create" || !ok || c.ID != "one" || c.Runtime.Name != record.Runtime.Name {
		t.Errorf("event %s %v", topic, e)
	}
	if _, err := store.Create(d.ctx, record); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}

	record.Labels = map[string]string{"a": "2", "b": "3"}
	updated, err := store.Update(d.ctx, record, "labels.b")
	if err != nil {
		t.Fatal(err)
	}
	if updated.Labels["a"] != "1" || updated.Labels["b"] != "3" {
		t.Errorf("labels %v, want only b changed", updated.Labels)
	}
	topic, e = next(t, ev)
	if c, ok := e.(*eventstypes.ContainerUpdate); topic != "/containers/update" || !ok || c.Labels["b"] != "3" {
		t.Errorf("event %s %v", topic, e)
	}

	list, err := store.List(d.ctx, `labels."b"==3`)
	if err != nil || len(list) != 1 || list[0].ID != "one" {
		t.Errorf("list %v %v", list, err)
	}
	plain, err := containersapi.NewContainersClient(d.conn).List(outgoing(d.ctx), &containersapi.ListContainersRequest{})
	if err != nil || len(plain.Containers) != 1 {
		t.Errorf("list in one message %v %v", plain, err)
	}
	if got, err := store.Get(d.ctx, "one"); err != nil || got.Image != "img" {
		t.Errorf("get %v %v", got, err)
	}
	if err := store.Delete(d.ctx, "one"); err != nil {
		t.Fatal(err)
	}
	topic, e = next(t, ev)
	if c, ok := e.(*eventstypes.ContainerDelete); topic != "/containers/delete" || !ok || c.ID != "one" {
		t.Errorf("event %s %v", topic, e)
	}
	if err := store.Delete(d.ctx, "one"); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v, want NotFound", err)
	}
}

func TestRefusedContainerRecords(t *testing.T) {
	d := startDaemon(t)
	store := d.ContainerService()
	good := containers.Container{
		ID: "good", Runtime: containers.RuntimeInfo{Name: "r"}, Spec: &anypb.Any{TypeUrl: "s"},
	}
	if _, err := store.Create(d.ctx, good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*containers.Container){
		"id with a slash": func(c *containers.Container) { c.ID = "a/b" },
		"no runtime":      func(c *containers.Container) { c.ID, c.Runtime.Name = "x", "" },
		"key without snapshotter": func(c *containers.Container) {
			c.ID, c.SnapshotKey = "x", "k"
		},
	} {
		c := good
		change(&c)
		if _, err := store.Create(d.ctx, c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	// Only a missing value in the message itself shows that it is not taken for
	// an empty one: the client would send a value.
	_, err := containersapi.NewContainersClient(d.conn).Create(outgoing(d.ctx), &containersapi.CreateContainerRequest{
		Container: &containersapi.Container{ID: "x", Runtime: &containersapi.Container_Runtime{Name: "r"}},
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("no spec: %v, want InvalidArgument", err)
	}
	changed := good
	changed.Runtime.Name = "other"
	if _, err := store.Update(d.ctx, changed); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update of the runtime: %v, want InvalidArgument", err)
	}
	if _, err := store.Update(d.ctx, good, "createdat"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update of an unknown field: %v, want InvalidArgument", err)
	}
	if _, err := store.Get(context.Background(), "good"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: %v, want FailedPrecondition", err)
	}
}

// outgoing puts the namespace where a bare gRPC client sends it.
func outgoing(ctx context.Context) context.Context {
	ns, _ := namespaces.Namespace(ctx)
	return metadata.AppendToOutgoingContext(ctx, namespaces.GRPCHeader, ns)
}

// A message may leave out what every client of today sends.
func TestEmptyRequestsAreInvalid(t *testing.T) {
	d := startDaemon(t)
	ctx := outgoing(d.ctx)
	cs, is := containersapi.NewContainersClient(d.conn), imagesapi.NewImagesClient(d.conn)
	ls, ns := leasesapi.NewLeasesClient(d.conn), namespacesapi.NewNamespacesClient(d.conn)
	sn, sb := snapshotsapi.NewSnapshotsClient(d.conn), sandboxapi.NewStoreClient(d.conn)
	tr := transferapi.NewTransferClient(d.conn)
	for name, call := range map[string]func() error{
		"containers create": func() error { _, err := cs.Create(ctx, &containersapi.CreateContainerRequest{}); return err },
		"containers update": func() error { _, err := cs.Update(ctx, &containersapi.UpdateContainerRequest{}); return err },
		"images create":     func() error { _, err := is.Create(ctx, &imagesapi.CreateImageRequest{}); return err },
		"images create without target": func() error {
			_, err := is.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{Name: "x"}})
			return err
		},
		"images update":     func() error { _, err := is.Update(ctx, &imagesapi.UpdateImageRequest{}); return err },
		"leases add":        func() error { _, err := ls.AddResource(ctx, &leasesapi.AddResourceRequest{}); return err },
		"leases remove":     func() error { _, err := ls.DeleteResource(ctx, &leasesapi.DeleteResourceRequest{}); return err },
		"namespaces create": func() error { _, err := ns.Create(ctx, &namespacesapi.CreateNamespaceRequest{}); return err },
		"namespaces update": func() error { _, err := ns.Update(ctx, &namespacesapi.UpdateNamespaceRequest{}); return err },
		"snapshots stat":    func() error { _, err := sn.Stat(ctx, &snapshotsapi.StatSnapshotRequest{}); return err },
		"snapshots unknown": func() error {
			_, err := sn.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: "zfs"})
			return err
		},
		"snapshots update": func() error {
			_, err := sn.Update(ctx, &snapshotsapi.UpdateSnapshotRequest{Snapshotter: "native"})
			return err
		},
		"sandboxes create": func() error { _, err := sb.Create(ctx, &sandboxapi.StoreCreateRequest{}); return err },
		"sandboxes update": func() error { _, err := sb.Update(ctx, &sandboxapi.StoreUpdateRequest{}); return err },
		"transfer":         func() error { _, err := tr.Transfer(ctx, &transferapi.TransferRequest{}); return err },
	} {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}

func TestNamespacesAndTheirEvents(t *testing.T) {
	d := startDaemon(t)
	store := d.NamespaceService()
	ev := d.subscribe("other")
	if labels, err := store.Labels(d.ctx, "other"); err != nil || len(labels) > 0 {
		t.Errorf("labels of an unknown namespace: %v %v, want none", labels, err)
	}
	if err := store.Create(d.ctx, "other", map[string]string{"a": "1"}); err != nil {
		t.Fatal(err)
	}
	if topic, e := next(t, ev); topic != "/namespaces/create" {
		t.Errorf("event %s %v", topic, e)
	}
	if err := store.Create(d.ctx, "other", nil); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
	if err := store.Create(d.ctx, "../x", nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create of a bad name: %v, want InvalidArgument", err)
	}
	if err := store.SetLabel(d.ctx, "other", "b", "2"); err != nil {
		t.Fatal(err)
	}
	if topic, e := next(t, ev); topic != "/namespaces/update" {
		t.Errorf("event %s %v", topic, e)
	}
	if labels, err := store.Labels(d.ctx, "other"); err != nil || labels["a"] != "1" || labels["b"] != "2" {
		t.Errorf("labels %v %v", labels, err)
	}
	_, err := namespacesapi.NewNamespacesClient(d.conn).Update(d.ctx, &namespacesapi.UpdateNamespaceRequest{
		Namespace: &namespacesapi.Namespace{Name: "other", Labels: map[string]string{"c": "3"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if topic, e := next(t, ev); topic != "/namespaces/update" {
		t.Errorf("event %s %v", topic, e)
	}
	if labels, err := store.Labels(d.ctx, "other"); err != nil || len(labels) != 1 || labels["c"] != "3" {
		t.Errorf("labels after replacement %v %v", labels, err)
	}

	inOther := namespaces.WithNamespace(t.Context(), "other")
	c := containers.Container{ID: "c", Runtime: containers.RuntimeInfo{Name: "r"}, Spec: &anypb.Any{TypeUrl: "s"}}
	if _, err := d.ContainerService().Create(inOther, c); err != nil {
		t.Fatal(err)
	}
	next(t, ev)
	if err := store.Delete(d.ctx, "other"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete with a container: %v, want FailedPrecondition", err)
	}
	if err := d.ContainerService().Delete(inOther, "c"); err != nil {
		t.Fatal(err)
	}
	next(t, ev)
	if err := store.Delete(d.ctx, "other"); err != nil {
		t.Fatal(err)
	}
	if topic, e := next(t, ev); topic != "/namespaces/delete" {
		t.Errorf("event %s %v", topic, e)
	}
	if err := store.Delete(d.ctx, "other"); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v, want NotFound", err)
	}
}

func TestImageRecords(t *testing.T) {
	d := startDaemon(t)
	store := d.ImageService()
	target := descriptor(ocispec.MediaTypeImageManifest, []byte("{}"))
	img := images.Image{Name: "example.org/a:1", Target: target, Labels: map[string]string{"a": "1"}}
	if _, err := store.Create(d.ctx, img); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(d.ctx, img); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
	img.Labels = map[string]string{"b": "2"}
	if got, err := store.Update(d.ctx, img, "labels.b"); err != nil || got.Labels["a"] != "1" || got.Labels["b"] != "2" {
		t.Errorf("update %v %v", got, err)
	}
	if list, err := store.List(d.ctx, "name==example.org/a:1"); err != nil || len(list) != 1 {
		t.Errorf("list %v %v", list, err)
	}
	other := descriptor(ocispec.MediaTypeImageManifest, []byte("{ }"))
	if err := store.Delete(d.ctx, img.Name, images.DeleteTarget(&other)); err == nil {
		t.Error("delete with another target went through")
	}
	if err := store.Delete(d.ctx, img.Name, images.DeleteTarget(&target)); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get(d.ctx, img.Name); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v, want NotFound", err)
	}
}

func TestLeasesHoldAndLetGo(t *testing.T) {
	d := startDaemon(t)
	manager := d.LeasesService()
	l, err := manager.Create(d.ctx, leases.WithID("mine"), leases.WithLabels(map[string]string{"a": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Create(d.ctx, leases.WithID("mine")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
	info := d.writeBlob(leases.WithLease(d.ctx, l.ID), []byte("held by a lease"))
	sn := d.SnapshotService("overlayfs")
	if _, err := sn.Prepare(leases.WithLease(d.ctx, l.ID), "leased", ""); err != nil {
		t.Fatal(err)
	}
	d.collect()
	if _, err := d.ContentStore().Info(d.ctx, info.Digest); err != nil {
		t.Errorf("blob under a lease: %v", err)
	}
	held, err := manager.ListResources(d.ctx, l)
	if err != nil || len(held) != 2 {
		t.Errorf("resources %v %v, want a blob and a snapshot", held, err)
	}
	resource := leases.Resource{ID: "leased", Type: "snapshots/overlayfs"}
	if err := manager.DeleteResource(d.ctx, l, resource); err != nil {
		t.Fatal(err)
	}
	if err := manager.AddResource(d.ctx, l, resource); err != nil {
		t.Fatal(err)
	}
	if list, err := manager.List(d.ctx, "labels.a==1"); err != nil || len(list) != 1 {
		t.Errorf("list %v %v", list, err)
	}
	if err := manager.Delete(d.ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	// No collection in between: the delete was synchronous.
	if _, err := d.ContentStore().Info(d.ctx, info.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("blob after the lease: %v, want NotFound", err)
	}
	if _, err := sn.Stat(d.ctx, "leased"); !errdefs.IsNotFound(err) {
		t.Errorf("snapshot after the lease: %v, want NotFound", err)
	}
	if err := manager.Delete(d.ctx, l); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v, want NotFound", err)
	}
	d.checkEmpty()
}

func TestSandboxRecords(t *testing.T) {
	d := startDaemon(t)
	store := d.SandboxStore()
	if _, err := store.Create(d.ctx, sandbox.Sandbox{ID: "pod", Labels: map[string]string{"a": "1"}, Runtime: sandbox.RuntimeOpts{Name: "r"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Update(d.ctx, sandbox.Sandbox{ID: "pod", Labels: map[string]string{"a": "2"}}, "labels"); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Get(d.ctx, "pod"); err != nil || got.Labels["a"] != "2" {
		t.Errorf("get %v %v", got, err)
	}
	if list, err := store.List(d.ctx); err != nil || len(list) != 1 {
		t.Errorf("list %v %v", list, err)
	}
	if err := store.Delete(d.ctx, "pod"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get(d.ctx, "pod"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v, want NotFound", err)
	}
}

func TestSnapshotListComesInBlocks(t *testing.T) {
	d := startDaemon(t)
	l, err := d.LeasesService().Create(d.ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	sn := d.SnapshotService("native")
	ctx := leases.WithLease(d.ctx, l.ID)
	const n = 205
	for i := range n {
		if _, err := sn.View(ctx, "view-"+string(rune('a'+i%26))+"-"+string(rune('a'+i/26)), ""); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	if err := sn.Walk(d.ctx, func(_ context.Context, i snapshots.Info) error { seen[i.Name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != n {
		t.Errorf("%d snapshots listed, want %d", len(seen), n)
	}
	if err := d.LeasesService().Delete(d.ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	d.checkEmpty()
}
