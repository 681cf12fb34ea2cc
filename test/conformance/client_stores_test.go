package conformance

import (
	"bytes"
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// records keeps containers that nobody runs.
func (u *calls) records() {
	store, id := u.c.ContainerService(), u.d.ID("record")
	u.got("Client.ContainerService", store != nil, nil)
	spec, err := typeurl.MarshalAny(&oci.Spec{Version: "1.2.0"})
	u.must(err)
	made, err := store.Create(u.ctx, containers.Container{
		ID: id, Labels: map[string]string{"k": "v"}, Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"},
		Spec: spec, Image: harness.Image, Snapshotter: "overlayfs", SnapshotKey: "none",
	})
	u.got("ContainerService.Create", made, err)
	read, err := store.Get(u.ctx, id)
	u.got("ContainerService.Get", read, err)
	read.Labels = map[string]string{"k": "new"}
	updated, err := store.Update(u.ctx, read, "labels.k")
	u.got("ContainerService.Update", updated, err)
	list, err := store.List(u.ctx, "labels.k==new")
	u.got("ContainerService.List", list, err)
	u.got("ContainerService.Delete", nil, store.Delete(u.ctx, id))
}

// images are records, and what is behind them.
func (u *calls) images() {
	store, img := u.c.ImageService(), u.image()
	const name, other, moved = "berth.test/record:1", "berth.test/transferred:1", "berth.test/moved:1"
	made, err := store.Create(u.ctx, images.Image{Name: name, Target: img.Target(), Labels: map[string]string{"k": "v"}})
	u.got("ImageService.Create", made, err)
	made.Labels["k"] = "new"
	updated, err := store.Update(u.ctx, made, "labels.k")
	u.got("ImageService.Update", updated, err)
	read, err := store.Get(u.ctx, name)
	u.got("ImageService.Get", read, err)
	list, err := store.List(u.ctx, "name=="+name)
	u.got("ImageService.List", list, err)
	u.got("Client.ImageService", true, nil)
	u.got("Client.Transfer", nil, u.c.Transfer(u.ctx, image.NewStore(name), image.NewStore(other)))
	u.got("TransferService.Transfer", nil, u.c.TransferService().Transfer(u.ctx, image.NewStore(name), image.NewStore(moved)))
	u.got("Client.TransferService", true, nil)
	all, err := u.c.ListImages(u.ctx)
	names := make([]string, 0, len(all))
	for _, i := range all {
		names = append(names, i.Name())
	}
	slices.Sort(names)
	u.got("Client.ListImages", names, err)
	for _, n := range []string{name, other, moved} {
		u.got("ImageService.Delete", nil, store.Delete(u.ctx, n, images.SynchronousDelete()))
	}

	u.got("Image.Name", img.Name(), nil)
	u.got("Image.Target", img.Target(), nil)
	u.got("Image.Labels", img.Labels(), nil)
	u.got("Image.Metadata", img.Metadata(), nil)
	u.got("Image.Platform", img.Platform().Match(platforms.DefaultSpec()), nil)
	u.got("Image.ContentStore", img.ContentStore() != nil, nil)
	config, err := img.Config(u.ctx)
	u.got("Image.Config", config, err)
	spec, err := img.Spec(u.ctx)
	u.got("Image.Spec", spec, err)
	layers, err := img.RootFS(u.ctx)
	u.got("Image.RootFS", layers, err)
	size, err := img.Size(u.ctx)
	u.got("Image.Size", size, err)
	size, err = img.Usage(u.ctx, client.WithManifestUsage())
	u.got("Image.Usage", size, err)
	unpacked, err := img.IsUnpacked(u.ctx, "overlayfs")
	u.got("Image.IsUnpacked", unpacked, err)
	u.got("Image.Unpack", nil, img.Unpack(u.ctx, "native"))
	unpacked, err = img.IsUnpacked(u.ctx, "native")
	u.got("Image.IsUnpacked", unpacked, err)
	u.got("Client.Install", nil, u.c.Install(u.ctx, img, client.WithInstallPath(u.dir)))
	_, err = os.Stat(filepath.Join(u.dir, "bin", "busybox"))
	u.must(err)
}

// image is the test image.
func (u *calls) image() client.Image {
	u.t.Helper()
	img, err := u.c.GetImage(u.ctx, harness.Image)
	u.got("Client.GetImage", err == nil, err)
	u.must(err)
	return img
}

// registry moves images in and out.
func (u *calls) registry() {
	name := testimage.NewRegistry(u.t).Host + "/image:1"
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	plain := client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts}))
	u.got("Client.Push", nil, u.c.Push(u.ctx, name, u.image().Target(), plain))
	fetched, err := u.c.Fetch(u.ctx, name, plain)
	u.got("Client.Fetch", fetched.Target, err)
	pulled, err := u.c.Pull(u.ctx, name, plain, client.WithPullUnpack)
	u.got("Client.Pull", err == nil && pulled.Target().Digest == fetched.Target.Digest, err)
	u.must(u.c.ImageService().Delete(u.ctx, name, images.SynchronousDelete()))

	var tar bytes.Buffer
	u.got("Client.Export", nil, u.c.Export(u.ctx, &tar, archive.WithImage(u.c.ImageService(), harness.Image)))
	imported, err := u.c.Import(u.ctx, &tar)
	u.got("Client.Import", len(imported), err)
}

// content writes, reads and forgets blobs.
func (u *calls) content() {
	ctx, done, err := u.c.WithLease(u.ctx)
	u.got("Client.WithLease", err == nil, err)
	store, data := u.c.ContentStore(), []byte("some content\n")
	u.got("Client.ContentStore", true, nil)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data)), MediaType: "text/plain"}
	w, err := store.Writer(ctx, content.WithRef("part"), content.WithDescriptor(desc))
	u.got("ContentStore.Writer", err == nil, err)
	u.must(err)
	_, err = w.Write(data[:4])
	u.must(err)
	status, err := store.Status(ctx, "part")
	u.got("ContentStore.Status", []any{status.Ref, status.Offset, status.Total, status.Expected}, err)
	all, err := store.ListStatuses(ctx)
	u.got("ContentStore.ListStatuses", len(all), err)
	_, err = w.Write(data[4:])
	u.must(err)
	u.must(w.Commit(ctx, desc.Size, desc.Digest, content.WithLabels(map[string]string{"k": "v"})))
	u.must(w.Close())
	w, err = store.Writer(ctx, content.WithRef("given up"))
	u.must(err)
	u.must(w.Close())
	// The server's end of the writer closes later, and stock trips over that.
	harness.Await(u.t, time.Minute, "what was given up is gone", func() bool {
		err := store.Abort(ctx, "given up")
		return err == nil || errdefs.IsNotFound(err)
	})
	u.got("ContentStore.Abort", nil, nil)

	info, err := store.Info(ctx, desc.Digest)
	u.got("ContentStore.Info", info, err)
	info.Labels = map[string]string{"k": "new"}
	info, err = store.Update(ctx, info, "labels.k")
	u.got("ContentStore.Update", info, err)
	r, err := store.ReaderAt(ctx, desc)
	u.must(err)
	read := make([]byte, r.Size())
	_, err = r.ReadAt(read, 0)
	u.got("ContentStore.ReaderAt", string(read), err)
	u.must(r.Close())
	var found []content.Info
	err = store.Walk(ctx, func(i content.Info) error { found = append(found, i); return nil }, "labels.k==new")
	u.got("ContentStore.Walk", found, err)
	u.got("ContentStore.Delete", nil, store.Delete(ctx, desc.Digest))
	u.must(done(ctx))
}

// snapshots are made, compared and removed.
func (u *calls) snapshots() {
	ctx, done, err := u.c.WithLease(u.ctx)
	u.must(err)
	sn, diffs := u.c.SnapshotService("overlayfs"), u.c.DiffService()
	u.got("Client.SnapshotService", true, nil)
	u.got("Client.DiffService", true, nil)
	upper, err := sn.Prepare(ctx, "active", "", snapshots.WithLabels(map[string]string{"k": "v"}))
	u.got("SnapshotService.Prepare", len(upper), err)
	u.must(mount.WithTempMount(ctx, upper, func(root string) error {
		return os.WriteFile(filepath.Join(root, "file"), []byte("text\n"), 0o600)
	}))
	mounts, err := sn.Mounts(ctx, "active")
	u.got("SnapshotService.Mounts", []any{len(mounts), mounts[0].Type}, err)
	info, err := sn.Stat(ctx, "active")
	u.got("SnapshotService.Stat", info, err)
	info.Labels = map[string]string{"k": "new"}
	info, err = sn.Update(ctx, info, "labels.k")
	u.got("SnapshotService.Update", info, err)
	usage, err := sn.Usage(ctx, "active")
	u.got("SnapshotService.Usage", usage, err)
	u.got("SnapshotService.Commit", nil, sn.Commit(ctx, "done", "active"))
	empty, err := sn.Prepare(ctx, "empty", "")
	u.must(err)
	view, err := sn.View(ctx, "view", "done")
	u.got("SnapshotService.View", len(view), err)
	layer, err := diffs.Compare(ctx, empty, view)
	u.got("DiffService.Compare", layer.MediaType, err)
	applied, err := diffs.Apply(ctx, layer, empty)
	u.got("DiffService.Apply", applied.MediaType, err)
	u.must(mount.WithTempMount(ctx, empty, func(root string) error {
		data, err := os.ReadFile(filepath.Join(root, "file"))
		u.got("DiffService.Apply", string(data), err)
		return nil
	}))
	var names []string
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Parent == "" && i.Kind != snapshots.KindCommitted || i.Name == "view" || i.Name == "done" {
			names = append(names, i.Name)
		}
		return nil
	})
	slices.Sort(names)
	u.got("SnapshotService.Walk", names, err)
	for _, name := range []string{"view", "empty", "done"} {
		u.got("SnapshotService.Remove", nil, sn.Remove(ctx, name))
	}
	u.got("SnapshotService.Close", nil, sn.Close())
	u.must(u.c.ContentStore().Delete(ctx, layer.Digest))
	u.must(done(ctx))
}

// leases hold what else would be collected.
func (u *calls) leases() {
	store := u.c.LeasesService()
	u.got("Client.LeasesService", true, nil)
	lease, err := store.Create(u.ctx, leases.WithID("lease"), leases.WithLabels(map[string]string{"k": "v"}))
	u.got("LeasesService.Create", lease, err)
	resource := leases.Resource{Type: "content", ID: u.image().Target().Digest.String()}
	u.got("LeasesService.AddResource", nil, store.AddResource(u.ctx, lease, resource))
	held, err := store.ListResources(u.ctx, lease)
	u.got("LeasesService.ListResources", held, err)
	u.got("LeasesService.DeleteResource", nil, store.DeleteResource(u.ctx, lease, resource))
	all, err := store.List(u.ctx, "labels.k==v")
	u.got("LeasesService.List", all, err)
	u.got("LeasesService.Delete", nil, store.Delete(u.ctx, lease, leases.SynchronousDelete))
}

// namespaces come and go.
func (u *calls) namespaces() {
	store, name := u.c.NamespaceService(), u.d.Namespace+"-more"
	u.got("Client.NamespaceService", true, nil)
	u.got("NamespaceService.Create", nil, store.Create(u.ctx, name, map[string]string{"k": "v"}))
	u.got("NamespaceService.SetLabel", nil, store.SetLabel(u.ctx, name, "l", "w"))
	labels, err := store.Labels(u.ctx, name)
	u.got("NamespaceService.Labels", labels, err)
	names, err := store.List(u.ctx)
	slices.Sort(names)
	u.got("NamespaceService.List", names, err)
	u.got("NamespaceService.Delete", nil, store.Delete(u.ctx, name))
}

// events are published, forwarded and heard.
func (u *calls) events() {
	service := u.c.EventService()
	u.got("Client.EventService", true, nil)
	for method, subscribe := range map[string]func(context.Context, ...string) (<-chan *events.Envelope, <-chan error){
		"Client.Subscribe": u.c.Subscribe, "EventService.Subscribe": service.Subscribe,
	} {
		ctx, cancel := context.WithCancel(u.ctx)
		heard, errs := subscribe(ctx, `topic=="/conformance/event"`)
		event := &eventsapi.ContainerDelete{ID: u.d.ID("nobody")}
		packed, err := typeurl.MarshalAny(event)
		u.must(err)
		// The subscription may begin after the first ones.
		var first *events.Envelope
		harness.Await(u.t, time.Minute, "an event", func() bool {
			u.must(service.Publish(u.ctx, "/conformance/event", event))
			select {
			case first = <-heard:
				return true
			case err := <-errs:
				u.t.Fatal(err)
			case <-time.After(50 * time.Millisecond):
			}
			return false
		})
		u.got(method, []string{first.Namespace, first.Topic, first.Event.GetTypeUrl()}, nil)
		u.got("EventService.Publish", true, nil)
		err = service.Forward(u.ctx, &events.Envelope{
			Timestamp: time.Now(), Namespace: u.d.Namespace + "-other", Topic: "/conformance/event", Event: packed,
		})
		u.must(err)
		for first.Namespace == u.d.Namespace {
			select {
			case first = <-heard:
			case <-ctx.Done():
				u.t.Fatal("the event that was forwarded did not come")
			}
		}
		u.got("EventService.Forward", first.Namespace, err)
		cancel()
	}
}

// mounts are activated for a client.
func (u *calls) mounts() {
	ctx, done, err := u.c.WithLease(u.ctx)
	u.must(err)
	m := u.c.MountManager()
	u.got("Client.MountManager", true, nil)
	l := newLayered(u.t, u.d, "calls")
	name := u.d.ID("activation")
	info, err := m.Activate(ctx, name, l.mounts(), mount.WithLabels(map[string]string{"k": "v"}))
	u.got("MountManager.Activate", []any{info.Name, len(info.Active), len(info.System), info.Labels}, err)
	info, err = m.Info(ctx, name)
	u.got("MountManager.Info", []any{info.Name, len(info.Active), len(info.System), info.Labels}, err)
	all, err := m.List(ctx)
	u.got("MountManager.List", len(all), err)
	info.Labels = map[string]string{"k": "new"}
	info, err = m.Update(ctx, info, "labels.k")
	u.got("MountManager.Update", info.Labels, err)
	u.got("MountManager.Deactivate", nil, m.Deactivate(ctx, name))
	u.must(done(ctx))
}

// sandbox starts one, by the client and by its parts.
func (u *calls) sandbox() {
	shim, store, controller := shimIn(u.t, u.d), u.c.SandboxStore(), u.c.SandboxController("shim")
	u.got("Client.SandboxStore", true, nil)
	u.got("Client.SandboxController", true, nil)
	sb, err := u.c.NewSandbox(u.ctx, u.d.ID("pod"), client.WithSandboxRuntime(shim, nil), client.WithSandboxSpec(&oci.Spec{Version: "1.2.0"}),
		client.WithSandboxLabels(map[string]string{"k": "v"}))
	u.got("Client.NewSandbox", err == nil, err)
	u.must(err)
	sb, err = u.c.LoadSandbox(u.ctx, sb.ID())
	u.got("Client.LoadSandbox", err == nil, err)
	u.got("Sandbox.ID", sb.ID(), nil)
	labels, err := sb.Labels(u.ctx)
	u.got("Sandbox.Labels", labels, err)
	u.got("Sandbox.Metadata", slices.Sorted(maps.Keys(sb.Metadata().Labels)), nil)
	u.got("Sandbox.Start", nil, sb.Start(u.ctx))
	member, err := sb.NewContainer(u.ctx, u.d.ID("member"), client.WithNewSpec())
	u.got("Sandbox.NewContainer", err == nil, err)
	u.must(member.Delete(u.ctx))
	exited, err := sb.Wait(u.ctx)
	u.must(err)
	u.got("Sandbox.Stop", nil, sb.Stop(u.ctx))
	u.got("Sandbox.Wait", u.exitOf(exited), nil)
	u.got("Sandbox.Shutdown", nil, sb.Shutdown(u.ctx))

	id := u.d.ID("parts")
	spec, err := typeurl.MarshalAny(&oci.Spec{Version: "1.2.0"})
	u.must(err)
	record, err := store.Create(u.ctx, sandbox.Sandbox{
		ID: id, Runtime: sandbox.RuntimeOpts{Name: shim}, Sandboxer: "shim", Labels: map[string]string{"k": "v"}, Spec: spec,
	})
	u.got("SandboxStore.Create", record, err)
	record.Labels = map[string]string{"k": "new"}
	record, err = store.Update(u.ctx, record, "labels.k")
	u.got("SandboxStore.Update", record, err)
	record, err = store.Get(u.ctx, id)
	u.got("SandboxStore.Get", record, err)
	all, err := store.List(u.ctx, "id=="+id)
	u.got("SandboxStore.List", all, err)
	u.got("SandboxController.Create", nil, controller.Create(u.ctx, record))
	started, err := controller.Start(u.ctx, id)
	u.got("SandboxController.Start", []any{started.SandboxID, started.Pid > 0}, err)
	status, err := controller.Status(u.ctx, id, false)
	u.got("SandboxController.Status", []any{status.SandboxID, status.State, status.Pid > 0}, err)
	metric, err := controller.Metrics(u.ctx, id)
	u.got("SandboxController.Metrics", metric.GetID(), err)
	platform, err := controller.Platform(u.ctx, id)
	u.got("SandboxController.Platform", platform.Architecture, err)
	u.got("SandboxController.Update", nil, controller.Update(u.ctx, id, record, "labels"))
	u.got("SandboxController.Stop", nil, controller.Stop(u.ctx, id))
	exit, err := controller.Wait(u.ctx, id)
	u.got("SandboxController.Wait", exit.ExitStatus, err)
	u.got("SandboxController.Shutdown", nil, controller.Shutdown(u.ctx, id))
	u.got("SandboxStore.Delete", nil, store.Delete(u.ctx, id))
}
