package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// takeRoot locks the root directory for as long as the file is open, and makes
// the directory of temporary files in it that BuildKit uses. What a program that
// was killed left mounted there is unmounted.
func takeRoot(root string) (*os.File, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, err
	}
	// As the kernel names mount points: one that is not found below is not
	// unmounted, and what it holds would be removed.
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("root %s: another berth-buildkitd uses it (give this one another --root)", root), lock.Close())
	}
	tmp := filepath.Join(root, "tmp")
	if err := clearMounts(tmp); err != nil {
		return nil, errors.Join(fmt.Errorf("unmount what is left below %s: %w", tmp, err), lock.Close())
	}
	err = errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o711), os.Setenv("TMPDIR", tmp))
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// clearMounts unmounts all below dir, the last mount first.
func clearMounts(dir string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		// EINVAL: it went with one that it was below.
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
