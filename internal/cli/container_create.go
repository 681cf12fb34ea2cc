package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"

	"github.com/containerd/containerd/api/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/cli/runspec"
)

// made is a container that exists, without a task.
type made struct {
	containers.Container
	record record
	// rootfs are the mounts of its snapshot.
	rootfs []mount.Mount
	// checkpoint and taskOptions are for a task that is restored: nil else.
	checkpoint  *types.Descriptor
	taskOptions *anypb.Any
}

// createContainer makes the container of a plan. When it fails, nothing of it
// is left.
//
// The order is for speed and safety: the lease, which keeps the garbage
// collector from the snapshot until the container refers to it, is made while
// the image is read, and dropped while the caller goes on.
func (s *session) createContainer(ctx context.Context, p *plan) (_ *made, err error) {
	var lease *pendingLease
	if p.image != "" {
		lease = s.startLease(ctx)
		defer lease.drop()
	}
	defaultsOf := s.startDefaults(ctx, p)

	m := &made{Container: containers.Container{
		ID: p.spec.ID, Labels: map[string]string{},
		Runtime: containers.RuntimeInfo{Options: p.runtimeOptions}, SandboxID: p.sandbox,
	}}
	var image *imageInfo
	if p.image != "" {
		if image, err = s.imageFor(ctx, p); err != nil {
			return nil, err
		}
		m.Image = image.Name
	}
	if m.Runtime.Name, m.Snapshotter, err = defaultsOf(); err != nil {
		return nil, err
	}
	if !takesRuncOptions(m.Runtime.Name) && p.runtime == "" && p.runtimeOptions != nil {
		return nil, usageError("runtime %q, the namespace's default: it takes none of runc's options (give --runtime)", m.Runtime.Name)
	}
	if p.restart.Policy != "" && p.restart.Policy != "no" {
		if err := s.checkMonitor(ctx, p.restart); err != nil {
			return nil, err
		}
	}
	undo := func() {}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if image != nil {
		leased, err := lease.context(ctx)
		if err != nil {
			return nil, err
		}
		if m.rootfs, err = s.prepare(leased, m, p, image); err != nil {
			return nil, err
		}
		m.SnapshotKey = m.ID
		undo = func() { s.removeSnapshot(ctx, m.Snapshotter, m.SnapshotKey) }
	} else {
		m.Snapshotter = ""
	}
	if m.record.Files, err = s.makeFiles(ctx, p); err != nil {
		return nil, err
	}
	if dir := m.record.Files; dir != "" {
		before := undo
		undo = func() {
			_ = os.RemoveAll(dir)
			before()
		}
	}
	spec, err := s.specFor(ctx, p, image, m.rootfs)
	if err != nil {
		return nil, err
	}
	if err := s.addHooks(p, m, spec); err != nil {
		return nil, err
	}
	if err := m.describe(p, image, spec); err != nil {
		return nil, err
	}
	if p.dumpFile != "" {
		if err := dumpSpec(p.dumpFile, spec); err != nil {
			return nil, err
		}
	}
	if m.Container, err = s.client.ContainerService().Create(ctx, m.Container); err != nil {
		return nil, s.createError(ctx, p.spec.ID, err)
	}
	return m, nil
}

func (s *session) createError(ctx context.Context, id string, err error) error {
	if errdefs.IsAlreadyExists(err) {
		return s.taken(ctx, id)
	}
	return fmt.Errorf("container %q: create: %w", id, err)
}

// taken says who has the name.
func (s *session) taken(ctx context.Context, id string) error {
	if _, err := s.client.ContainerService().Get(ctx, id); err != nil {
		return say(errdefs.ErrAlreadyExists, "name %q: taken by a snapshot that belongs to no container (choose another --name, or remove the snapshot)", id)
	}
	return say(errdefs.ErrAlreadyExists, "name %q: taken by another container (remove it: berth rm %s, or choose another --name)", id, id)
}

// imageFor finds, and fetches where the user wants that, the image of a plan.
func (s *session) imageFor(ctx context.Context, p *plan) (*imageInfo, error) {
	if p.pull == "always" {
		if err := s.pull(ctx, pullRequest{name: p.image, platform: p.platform, snapshotter: p.snapshotter}); err != nil {
			return nil, err
		}
	}
	img, err := s.findImage(ctx, p.image)
	if errdefs.IsNotFound(err) && p.pull == "missing" {
		if err := s.pull(ctx, pullRequest{name: p.image, platform: p.platform, snapshotter: p.snapshotter}); err != nil {
			return nil, err
		}
		img, err = s.findImage(ctx, p.image)
	}
	if err != nil {
		return nil, err
	}
	return s.readImage(ctx, img, p.platform)
}

// prepare makes the snapshot of a container over an image's layers, and
// unpacks them first where that is not done.
func (s *session) prepare(ctx context.Context, m *made, p *plan, image *imageInfo) ([]mount.Mount, error) {
	id := m.ID
	sn := s.client.SnapshotService(m.Snapshotter)
	extra := maps.Clone(p.snapshotterLabels)
	copied := len(p.spec.Isolation.UIDMaps) > 0
	if p.remapLabels {
		able, err := s.remaps(ctx, m.Snapshotter)
		if err != nil {
			return nil, err
		}
		if able {
			copied = false
			extra[snapshots.LabelSnapshotUIDMapping] = mapLabel(p.spec.Isolation.UIDMaps)
			extra[snapshots.LabelSnapshotGIDMapping] = mapLabel(p.spec.Isolation.GIDMaps)
		}
	}
	var opts []snapshots.Opt
	if len(extra) > 0 {
		opts = append(opts, snapshots.WithLabels(extra))
	}
	prepare := func() ([]mount.Mount, error) {
		parent := image.chainID
		if copied {
			var err error
			if parent, err = remapped(ctx, sn, parent, &p.spec.Isolation); err != nil {
				return nil, err
			}
		}
		return sn.Prepare(ctx, id, parent, opts...)
	}
	mounts, err := prepare()
	if errdefs.IsNotFound(err) {
		unpack := containerd.NewImageWithPlatform(s.client, image.Image, image.matcher)
		if err := unpack.Unpack(ctx, m.Snapshotter, containerd.WithUnpackApplyOpts(diff.WithSyncFs(p.syncFS))); err != nil {
			return nil, fmt.Errorf("image %q: unpack: %w", image.Name, err)
		}
		mounts, err = prepare()
	}
	if p.volatile && err == nil {
		m.record.Volatile = makeVolatile(mounts)
	}
	switch {
	case errdefs.IsAlreadyExists(err):
		return nil, s.taken(ctx, id)
	case err != nil:
		return nil, fmt.Errorf("snapshot %q of image %q: %w", id, image.Name, err)
	}
	return mounts, nil
}

// makeVolatile leaves out the writing of an overlay to the disk: without it the
// unmount waits for all that the file system below has to write, of others too.
// It says whether there was an overlay.
func makeVolatile(mounts []mount.Mount) (done bool) {
	for i := range mounts {
		if mounts[i].Type == "overlay" {
			mounts[i].Options = append(mounts[i].Options, "volatile")
			done = true
		}
	}
	return done
}

// knowsVolatile says whether the kernel has volatile overlays: since 5.10.
func knowsVolatile() bool {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 5 || major == 5 && minor >= 10)
}

// removeSnapshot is for cleaning up; what cannot be removed the garbage
// collector takes, since nothing refers to it.
func (s *session) removeSnapshot(ctx context.Context, snapshotter, key string) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := s.client.SnapshotService(snapshotter).Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		s.warnf("snapshot %q: %v (it is removed by the next garbage collection)", key, err)
	}
}

// describe fills in the container's labels, specification and notes.
func (m *made) describe(p *plan, image *imageInfo, spec *specs.Spec) error {
	stop := p.stopSignal
	if image != nil {
		for k, v := range image.config.Config.Labels {
			// Such labels steer the daemon; an image has no say in that.
			if !labels.IsReserved(k) && labels.Validate(k, v) == nil {
				m.Labels[k] = v
			}
		}
		if stop == "" {
			stop = image.config.Config.StopSignal
		}
	}
	if _, err := runspec.ParseSignal(stop); err != nil {
		stop = "SIGTERM"
	}
	maps.Copy(m.Labels, p.labels)
	m.Labels[containerd.StopSignalLabel] = stop
	p.restartLabels(m.Labels)
	value, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("specification: %w", err)
	}
	m.Spec = &anypb.Any{TypeUrl: specType, Value: value}
	m.record = record{
		Log: p.log, Detached: p.detached, Remove: p.remove, Terminal: spec.Process.Terminal, StopTimeout: p.stopTimeout,
		Network: p.net.mode, NetworkOf: p.net.of, Files: m.record.Files, Volatile: m.record.Volatile,
	}
	return m.record.put(&m.Container)
}

// startDefaults asks for the namespace's default runtime and snapshotter while
// the caller goes on; the function returned gives the names to use.
func (s *session) startDefaults(ctx context.Context, p *plan) func() (runtime, snapshotter string, err error) {
	if p.runtime != "" && p.snapshotter != "" {
		return func() (string, string, error) { return p.runtime, p.snapshotter, nil }
	}
	type answer struct {
		labels map[string]string
		err    error
	}
	got := make(chan answer, 1)
	go func() {
		l, err := s.client.NamespaceService().Labels(ctx, s.namespace)
		got <- answer{l, err}
	}()
	return func() (string, string, error) {
		a := <-got
		// A namespace comes into being with its first object.
		if a.err != nil && !errdefs.IsNotFound(a.err) {
			return "", "", fmt.Errorf("namespace %q: %w", s.namespace, a.err)
		}
		return firstOf(p.runtime, a.labels[defaults.DefaultRuntimeNSLabel], defaults.DefaultRuntime),
			firstOf(p.snapshotter, a.labels[defaults.DefaultSnapshotterNSLabel], defaults.DefaultSnapshotter), nil
	}
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
