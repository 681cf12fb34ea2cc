// Package mount assembles and takes down the root file system of a bundle.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	ctdmount "github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

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
	// mount(2) would follow a link to wherever it leads.
	if info, err := os.Lstat(dir); err != nil {
		return "", fmt.Errorf("root file system: %w", err)
	} else if !info.IsDir() {
		return "", fmt.Errorf("root file system: %s is not a directory: %w", dir, errdefs.ErrFailedPrecondition)
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
