package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// rootfs is the root file system of a step where this process sees it. What it
// holds is hostile, and another step may change it at any moment: paths are
// resolved below the handle, and what is opened is looked at before it is used.
type rootfs struct {
	path   string
	handle *os.File // O_PATH
}

func openRootfs(path string) (*rootfs, error) {
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	return &rootfs{path: path, handle: f}, nil
}

func (r *rootfs) close() error { return r.handle.Close() }

// open gives an O_PATH handle; symbolic links stay below the root.
func (r *rootfs) open(path string) (*os.File, error) {
	return pathrs.OpenatInRoot(r.handle, path)
}

// missing says whether nothing is at the path, which may lead through what is
// not a directory.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// resolve follows the links of a path as far as they go, and returns the path
// from the root that it stands for.
func (r *rootfs) resolve(path string) (string, error) {
	full, err := securejoin.SecureJoin(r.path, path)
	if err != nil {
		return "", fmt.Errorf("resolve %s in the root file system: %w", path, err)
	}
	rel, err := filepath.Rel(r.path, full)
	if err != nil {
		return "", err
	}
	return filepath.Join("/", rel), nil
}

// makeDir makes a directory and those above it, 0755; those that are new
// belong to the user. It returns the new ones, the deepest first.
func (r *rootfs) makeDir(path string, uid, gid uint32) ([]string, error) {
	path, err := r.resolve(path)
	if err != nil {
		return nil, err
	}
	var made []string
	for p := path; p != "/"; p = filepath.Dir(p) {
		h, err := r.open(p)
		if err == nil {
			_ = h.Close() // a handle for looking only
			break
		}
		if !missing(err) {
			return nil, fmt.Errorf("look for directory %s: %w", p, err)
		}
		made = append(made, p)
	}
	dir, err := pathrs.MkdirAllHandle(r.handle, path, 0o755)
	if err != nil {
		return nil, fmt.Errorf("make directory %s: %w", path, err)
	}
	defer dir.Close()
	for _, p := range made {
		if err := r.chown(p, uid, gid); err != nil {
			return nil, fmt.Errorf("make directory %s: %w", path, err)
		}
	}
	return made, nil
}

func (r *rootfs) chown(path string, uid, gid uint32) error {
	h, err := r.open(path)
	if err != nil {
		return err
	}
	defer h.Close()
	return unix.Fchownat(int(h.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH)
}

// times of a directory, which a mount point that comes or goes must not change.
type times struct {
	dir *os.File
	ts  []unix.Timespec
}

func (r *rootfs) times(dir string) (*times, error) {
	h, err := r.open(dir)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return &times{dir: h, ts: []unix.Timespec{st.Atim, st.Mtim}}, nil
}

// restore sets the times back and lets go of the directory.
func (t *times) restore() error {
	return errors.Join(
		unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", t.dir.Fd()), t.ts, 0),
		t.dir.Close())
}
