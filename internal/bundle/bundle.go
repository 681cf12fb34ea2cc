package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// Names of the files of a bundle that this package or its callers write.
const (
	SpecFile      = "config.json"
	RootfsDir     = "rootfs"
	WorkLink      = "work"
	LogFIFO       = "log"
	ShimFile      = "shim-binary-path"
	BootstrapFile = "bootstrap.json"
	SandboxFile   = "sandbox"
	GroupFile     = "group"
	bootFile      = "boot-id"
)

// Bundle is the directory of one task.
type Bundle struct {
	ID task.ID
	// Path is the bundle, Work the work directory; both absolute.
	Path string
	Work string

	store *Store
	rel   string
}

func (b *Bundle) fill(spec []byte, rootGID uint32) error {
	st := b.store.state
	if err := b.WriteFile(bootFile, []byte(b.store.bootID), 0o600); err != nil {
		return err
	}
	if rootGID != 0 {
		// The container's root has to pass through, and nobody else.
		if err := st.Chown(b.rel, -1, int(rootGID)); err != nil {
			return err
		}
		if err := st.Chmod(b.rel, 0o710); err != nil {
			return err
		}
	}
	if err := st.Mkdir(filepath.Join(b.rel, RootfsDir), 0o711); err != nil {
		return err
	}
	if err := b.makeWork(); err != nil {
		return err
	}
	if len(spec) == 0 {
		return nil
	}
	return st.WriteFile(filepath.Join(b.rel, SpecFile), spec, 0o666)
}

// makeWork makes the work directory anew: what is there under its name
// belonged to an earlier task.
func (b *Bundle) makeWork() error {
	root := b.store.root
	if err := root.MkdirAll(b.ID.Namespace, 0o711); err != nil {
		return err
	}
	err := root.Mkdir(b.rel, 0o711)
	if errors.Is(err, fs.ErrExist) {
		if err = remove(root, b.rel); err == nil {
			err = root.Mkdir(b.rel, 0o711)
		}
	}
	if err != nil {
		return err
	}
	return b.store.state.Symlink(b.Work, filepath.Join(b.rel, WorkLink))
}

// WriteFile replaces the named file in one step: a reader sees the old
// content or the new.
func (b *Bundle) WriteFile(name string, data []byte, mode fs.FileMode) error {
	path, tmp := filepath.Join(b.rel, name), filepath.Join(b.rel, "."+name+".new")
	if err := b.store.state.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("write %s of %s: %w", name, b.ID, err)
	}
	if err := b.store.state.Rename(tmp, path); err != nil {
		return errors.Join(fmt.Errorf("write %s of %s: %w", name, b.ID, err), b.store.state.Remove(tmp))
	}
	return nil
}

// ReadFile returns the named file, which must not be longer than limit bytes.
// A missing file is NotFound.
func (b *Bundle) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := b.store.state.OpenFile(filepath.Join(b.rel, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s of %s: %w", name, b.ID, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", name, b.ID, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s of %s is not a file: %w", name, b.ID, errdefs.ErrFailedPrecondition)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", name, b.ID, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s of %s is longer than %d bytes: %w", name, b.ID, limit, errdefs.ErrFailedPrecondition)
	}
	return data, nil
}

// OpenLog makes the shim's log FIFO where it is missing and opens it for
// reading and writing: as long as it is open here, a shim never finds it
// without a reader. The caller closes it.
func (b *Bundle) OpenLog() (*os.File, error) {
	dir, err := b.store.state.Open(b.rel)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", b.ID, err)
	}
	defer dir.Close()
	f, err := OpenFIFO(dir, LogFIFO)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", b.ID, err)
	}
	return f, nil
}

// OpenFIFO makes the FIFO where it is missing, 0700, and opens it for reading
// and writing without blocking.
func OpenFIFO(dir *os.File, name string) (*os.File, error) {
	err := unix.Mkfifoat(int(dir.Fd()), name, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkfifo", Path: name, Err: err}
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, fmt.Errorf("%s is not a FIFO: %w", name, errdefs.ErrFailedPrecondition)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Empty says that nothing is in the bundle: its maker died before it wrote
// anything.
func (b *Bundle) Empty() (bool, error) {
	dir, err := b.store.state.Open(b.rel)
	if err != nil {
		return false, fmt.Errorf("read the bundle of %s: %w", b.ID, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the bundle of %s: %w", b.ID, err)
	}
	return len(names) == 0, nil
}

// EarlierBoot says that the bundle was made before the machine was last
// started: no process or mount of it exists. A bundle that records no boot,
// made by another engine, is taken to be of this one.
func (b *Bundle) EarlierBoot() bool {
	boot, err := b.ReadFile(bootFile, 64)
	return err == nil && string(boot) != b.store.bootID
}

// Delete unmounts what is mounted on the root file system and removes the
// bundle and the work directory. It is idempotent.
func (b *Bundle) Delete() error {
	if err := b.clearRootfs(); err != nil {
		return fmt.Errorf("delete the bundle of %s: %w", b.ID, err)
	}
	err := errors.Join(remove(b.store.state, b.rel), remove(b.store.root, b.rel))
	if err != nil {
		return fmt.Errorf("delete the bundle of %s: %w", b.ID, err)
	}
	return nil
}

// clearRootfs unmounts the root file system. An rmdir that succeeds shows
// that nothing is mounted, without reading the mount table.
func (b *Bundle) clearRootfs() error {
	rootfs := filepath.Join(b.rel, RootfsDir)
	err := b.store.state.Remove(rootfs)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return unmountAll(filepath.Join(b.Path, RootfsDir))
}
