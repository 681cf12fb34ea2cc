// Package mount assembles and takes down the root file system of a bundle.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	ctdmount "github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// Rootfs mounts the mounts in order on <bundle>/rootfs and returns that
// directory. Without mounts there is nothing to do: the spec names its root
// itself, and the result is empty. When it fails nothing stays mounted.
func Rootfs(bundle string, mounts []task.Mount) (string, error) {
	if len(mounts) == 0 {
		return "", nil
	}
	dir := filepath.Join(bundle, "rootfs")
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("root file system: %w", err)
	}
	list := make([]ctdmount.Mount, 0, len(mounts))
	for _, m := range mounts {
		list = append(list, ctdmount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if err := ctdmount.All(list, dir); err != nil {
		return "", errors.Join(fmt.Errorf("mount root file system: %w", err), Unmount(bundle))
	}
	return dir, nil
}

// Unmount takes down whatever is mounted on or below <bundle>/rootfs. Nothing
// mounted is success.
func Unmount(bundle string) error {
	dir := filepath.Join(bundle, "rootfs")
	// The usual case is one mount; a plain umount2 finds that out without
	// reading the mount table.
	for range 64 {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EBUSY):
			return unmountBusy(dir)
		default:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return fmt.Errorf("unmount %s: more than 64 mounts on top of each other", dir)
}

// unmountBusy is for mounts below dir and for a process that is just leaving.
func unmountBusy(dir string) error {
	var err error
	for range 20 {
		if err = ctdmount.UnmountRecursive(dir, unix.UMOUNT_NOFOLLOW); err == nil {
			return nil
		}
		time.Sleep(25 * time.Millisecond)
	}
	// A process outside the container has its working directory there. The
	// name goes now, the mount when that process lets go.
	if derr := ctdmount.UnmountRecursive(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); derr != nil {
		return fmt.Errorf("unmount %s: %w", dir, errors.Join(err, derr))
	}
	return nil
}
