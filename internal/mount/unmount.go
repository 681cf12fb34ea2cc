package mount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// maxStack bounds the mounts on top of each other.
	maxStack = 64
	// busyGrace is how long a mount that is in use is waited for.
	busyGrace = 500 * time.Millisecond
	busyPause = 10 * time.Millisecond
)

// Unmount takes down whatever is mounted on or below <bundle>/rootfs. Nothing
// mounted is success. It takes half a second longer where a process outside
// the container keeps a mount busy: the name goes then, and the mount when that
// process lets go.
func Unmount(bundle string) error {
	dir := filepath.Join(bundle, "rootfs")
	// The usual case is one mount; a plain umount2 finds that out without
	// reading the mount table.
	for range maxStack {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EINVAL) && !hasEntries(dir):
			return nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBUSY):
			return unmountTree(dir)
		default:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return fmt.Errorf("unmount %s: more than %d mounts on top of each other", dir, maxStack)
}

// hasEntries says that there may be mounts below dir, which is none itself. A
// link is not followed.
func hasEntries(dir string) bool {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) > 0
}

// unmountTree is for mounts below dir and for a process that is just leaving.
func unmountTree(dir string) error {
	// The mount table shows no links.
	bundle, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	dir = filepath.Join(bundle, filepath.Base(dir))
	for end := time.Now().Add(busyGrace); ; time.Sleep(busyPause) {
		if found, err := sweep(dir, 0); found == 0 {
			return err
		}
		if time.Now().After(end) {
			break
		}
	}
	for range maxStack {
		var found int
		if found, err = sweep(dir, unix.MNT_DETACH); found == 0 {
			return err
		}
	}
	return fmt.Errorf("unmount %s: mounts are left: %w", dir, err)
}

// sweep unmounts what the mount table shows on and below dir, the deepest
// first, and returns how many that were before and why one stayed. A mount
// that another one hides is reached by the next sweep.
func sweep(dir string, flags int) (found int, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return 0, fmt.Errorf("mounts below %s: %w", dir, err)
	}
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int {
		return cmp.Compare(len(b.Mountpoint), len(a.Mountpoint))
	})
	for _, m := range mounts {
		uerr := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW|flags)
		if uerr != nil && !errors.Is(uerr, unix.EINVAL) && !errors.Is(uerr, unix.ENOENT) {
			err = fmt.Errorf("unmount %s: %w", m.Mountpoint, uerr)
		}
	}
	return len(mounts), err
}
