package runspec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// user finds the process's user, its group and its further groups in the
// container's own /etc/passwd and /etc/group.
func (b *builder) user() error {
	name := b.o.Process.User
	if name == "" {
		name = b.image.User
	}
	c := &containers.Container{ID: b.o.ID}
	if b.o.Rootfs == "" {
		c.Snapshotter, c.SnapshotKey = "rootfs", b.o.ID
	}
	root := mountedRoot{mounts: b.rootfs}
	set := func(opts ...oci.SpecOpts) error {
		return oci.ApplyOpts(b.ctx, root, c, b.spec, opts...)
	}
	var err error
	if name == "" {
		// Root may be a member of more groups: the image says of which.
		err = set(oci.WithAdditionalGIDs("root"))
	} else if err = set(oci.WithUser(name)); err == nil {
		err = set(oci.WithAdditionalGIDs(strconv.FormatUint(uint64(b.spec.Process.User.UID), 10)))
	}
	if err == nil && len(b.o.Process.Groups) > 0 {
		err = set(oci.WithAppendAdditionalGroups(b.o.Process.Groups...))
	}
	switch {
	case errors.Is(err, oci.ErrNoUsersFound), errors.Is(err, oci.ErrNoGroupsFound), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("user %q: not in the container's /etc/passwd or /etc/group (use numbers: uid:gid)", name)
	case err != nil:
		return fmt.Errorf("user %q: %w", name, err)
	}
	return nil
}

// mountedRoot gives the mounts of a snapshot that was just prepared to the
// options of pkg/oci, which would ask the daemon for them again.
type mountedRoot struct {
	snapshots.Snapshotter // nil: nothing but Mounts is called
	mounts                []mount.Mount
}

// SnapshotService implements oci.Client.
func (r mountedRoot) SnapshotService(string) snapshots.Snapshotter { return r }

// Mounts implements the one method of snapshots.Snapshotter that is needed.
func (r mountedRoot) Mounts(context.Context, string) ([]mount.Mount, error) { return r.mounts, nil }
