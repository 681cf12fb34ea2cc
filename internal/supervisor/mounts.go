package supervisor

import (
	"context"
	"fmt"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// mountOwner is the label that keeps an activation while its container exists;
// garbage collection undoes it afterwards.
const mountOwner = "containerd.io/gc.bref.container"

// activateRootfs gives the mount manager what a shim does not do by itself: types
// like format/overlay or mkfs/ext4. The mounts that remain for the shim take the
// place of those that the client asked for. shim is nil for Berth's own, which
// claims nothing.
//
// The activation is named after the container, as stock containerd names it.
func (t *Task) activateRootfs(ctx context.Context, c *creation, shim *bootapi.BootstrapResult) error {
	manager := t.s.cfg.Mounts
	if manager == nil || len(c.cfg.Rootfs) == 0 {
		return nil
	}
	opts, err := mountClaims(shim)
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, t.id.Namespace)
	mounts := mount.FromProto(mountsOf(c.cfg.Rootfs))
	info, err := manager.Activate(ctx, t.id.Container, mounts, opts(t.id.Container)...)
	if errdefs.IsAlreadyExists(err) {
		info, err = t.takeOver(ctx, mounts, opts(t.id.Container))
	}
	switch {
	case errdefs.IsNotImplemented(err):
		return nil // all of them are the shim's
	case err != nil:
		return fmt.Errorf("mount the root file system of task %q: %w", t.id.Container, err)
	}
	c.cfg.Rootfs = make([]task.Mount, len(info.System))
	for i, m := range info.System {
		c.cfg.Rootfs[i] = task.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return nil
}

// takeOver is for an activation that exists under the container's name. One of an
// earlier task, which a crash left, may hold another file system: it is made
// anew. One that a client made is used.
func (t *Task) takeOver(ctx context.Context, mounts []mount.Mount, opts []mount.ActivateOpt) (mount.ActivationInfo, error) {
	manager := t.s.cfg.Mounts
	info, err := manager.Info(ctx, t.id.Container)
	if err != nil || info.Labels[mountOwner] != t.id.Container {
		return info, err
	}
	if err := manager.Deactivate(ctx, t.id.Container); err != nil && !errdefs.IsNotFound(err) {
		// Its record is gone all the same, and garbage collection tries again.
		t.s.cfg.Log.Warn("mounts of an earlier task stay for now", "task", t.id.String(), "error", err)
	}
	return manager.Activate(ctx, t.id.Container, mounts, opts...)
}

// mountClaims are the options of an activation: what the shim says it mounts by
// itself is left to it.
func mountClaims(shim *bootapi.BootstrapResult) (func(id string) []mount.ActivateOpt, error) {
	var caps types.MountCapabilities
	if shim != nil {
		if _, err := shim.FindExtension(&caps); err != nil {
			return nil, fmt.Errorf("read what the shim mounts by itself: %w", err)
		}
	}
	return func(id string) []mount.ActivateOpt {
		opts := []mount.ActivateOpt{mount.WithLabels(map[string]string{mountOwner: id})}
		for _, name := range caps.Types {
			opts = append(opts, mount.WithAllowMountType(name))
		}
		for _, name := range caps.Transforms {
			opts = append(opts, mount.WithAllowTransform(name))
		}
		return opts
	}, nil
}

// deleteBundle removes the bundle, with what is still mounted in it, and then
// undoes the activation below. An activation that cannot be undone goes with the
// container, by garbage collection.
func (t *Task) deleteBundle() error {
	if err := t.bundle.Delete(); err != nil {
		return err
	}
	manager := t.s.cfg.Mounts
	if manager == nil {
		return nil
	}
	// Not with the caller's context: its end would leave the mounts behind.
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), t.id.Namespace), t.s.cfg.Timeouts.Cleanup)
	defer cancel()
	_, err := manager.Info(ctx, t.id.Container)
	if err == nil {
		err = manager.Deactivate(ctx, t.id.Container)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		t.s.cfg.Log.Warn("mounts of a deleted task stay until its container is removed", "task", t.id.String(), "error", err)
	}
	return nil
}
