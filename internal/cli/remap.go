package cli

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/runspec"
)

// remaps says whether the snapshotter shifts owners itself, without a copy. One
// that could only copy in a way that its configuration forbids is an error.
func (s *session) remaps(ctx context.Context, snapshotter string) (bool, error) {
	answer, err := s.client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1,id=="+snapshotter)
	if err != nil {
		return false, fmt.Errorf("snapshotter %q: %w", snapshotter, err)
	}
	for _, p := range answer.Plugins {
		switch {
		case slices.Contains(p.Capabilities, "remap-ids"):
			return true, nil
		case slices.Contains(p.Capabilities, "only-remap-ids"):
			return false, fmt.Errorf("snapshotter %q: the host has no id-mapped mounts for it (leave out --remap-labels, or configure slow_chown)", snapshotter)
		}
	}
	return false, nil
}

// mapLabel writes an id map as snapshotters read it.
func mapLabel(maps []specs.LinuxIDMapping) string {
	var list []string
	for _, m := range maps {
		list = append(list, fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size))
	}
	return strings.Join(list, ",")
}

// remapped is a copy of a snapshot whose files belong to the mapped ids. It is
// made once for an image and a map, and goes with the last container on it.
func remapped(ctx context.Context, sn snapshots.Snapshotter, parent string, iso *runspec.Isolation) (string, error) {
	sum := sha256.Sum256([]byte(parent + " " + mapLabel(iso.UIDMaps) + " " + mapLabel(iso.GIDMaps)))
	name := "remapped-" + hex.EncodeToString(sum[:])
	if _, err := sn.Stat(ctx, name); err == nil || !errdefs.IsNotFound(err) {
		return name, err
	}
	// Two commands may make it at once, each under a name of its own.
	work := name + "-" + newID()
	mounts, err := sn.Prepare(ctx, work, parent)
	if err != nil {
		return "", err
	}
	err = mount.WithTempMount(ctx, mounts, func(root string) error { return shiftOwners(root, iso) })
	if err == nil {
		err = sn.Commit(ctx, name, work)
	}
	if err == nil {
		return name, nil
	}
	clean, cancel := cleanup(ctx)
	defer cancel()
	_ = sn.Remove(clean, work)
	if errdefs.IsAlreadyExists(err) {
		return name, nil
	}
	return "", fmt.Errorf("map the owners of the image's files: %w", err)
}

// shiftOwners gives every file below root to the host's ids. It follows no
// link, and keeps what a change of owner takes away: the set-id bits and the
// file capabilities, which then count in the user namespace alone.
func shiftOwners(root string, iso *runspec.Isolation) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no owner")
		}
		uid, okUID := runspec.HostID(iso.UIDMaps, st.Uid)
		gid, okGID := runspec.HostID(iso.GIDMaps, st.Gid)
		if !okUID || !okGID {
			return fmt.Errorf("%s belongs to %d:%d, which the id maps leave out (map more ids)", strings.TrimPrefix(path, root), st.Uid, st.Gid)
		}
		caps := fileCaps(path, info)
		if err := os.Lchown(path, int(uid), int(gid)); err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 && info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
			if err := os.Chmod(path, info.Mode()); err != nil {
				return err
			}
		}
		if caps == nil {
			return nil
		}
		rootUID, _ := runspec.HostID(iso.UIDMaps, 0)
		return unix.Lsetxattr(path, capsName, namespacedCaps(caps, rootUID), 0)
	})
}

const capsName = "security.capability"

// fileCaps reads a regular file's capabilities, nil for none.
func fileCaps(path string, info fs.FileInfo) []byte {
	if !info.Mode().IsRegular() {
		return nil
	}
	buf := make([]byte, 64)
	n, err := unix.Lgetxattr(path, capsName, buf)
	if err != nil || n < 20 {
		return nil // none, or of a form without inheritance
	}
	return buf[:n]
}

// namespacedCaps is the third form of linux/capability.h: the second, and the
// id of the root for whose user namespace it counts.
func namespacedCaps(caps []byte, root uint32) []byte {
	const revisionMask, revision3 = 0xff000000, 0x03000000
	out := slices.Clone(caps[:20])
	magic := binary.LittleEndian.Uint32(out)
	binary.LittleEndian.PutUint32(out, magic&^uint32(revisionMask)|revision3)
	return binary.LittleEndian.AppendUint32(out, root)
}
