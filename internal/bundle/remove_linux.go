package bundle

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// maxDepth bounds the open directories of one removal.
const maxDepth = 256

// removeTree removes a directory and what is in it. It follows no symbolic
// link and enters no mount: a file system that is still mounted below is an
// error, not a loss.
func removeTree(parent int, name string, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	if depth >= maxDepth {
		return fmt.Errorf("%s: more than %d directories deep: %w", name, maxDepth, errdefs.ErrResourceExhausted)
	}
	dir, err := openHere(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeTree(int(dir.Fd()), n, depth+1); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

// openHere opens a directory that lies on its parent's own mount.
func openHere(parent int, name string) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(parent, name, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EXDEV):
			return nil, fmt.Errorf("%s is still a mount point: %w", name, errdefs.ErrFailedPrecondition)
		default:
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// unmountAll unmounts everything at and below path, the last mounted first.
// What is busy is detached: its users keep it, the path is free.
func unmountAll(path string) error {
	// A mount can lie on top of another, and the table shows both; a second
	// look catches what was mounted meanwhile.
	for range 3 {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
		if err != nil {
			return fmt.Errorf("read the mount table: %w", err)
		}
		if len(mounts) == 0 {
			return nil
		}
		slices.Reverse(mounts)
		for _, m := range mounts {
			if err := unmount(m.Mountpoint); err != nil {
				return err
			}
		}
	}
	return nil
}

func unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	// EINVAL: no longer a mount point, it went with the one above it.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	return nil
}
