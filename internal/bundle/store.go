package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// Subdir is the directory under state and root that holds the tasks' bundles.
const Subdir = "io.containerd.runtime.v2.task"

// Store makes and finds bundles. It is safe for use by several goroutines;
// two calls for the same id at the same time are the caller's to prevent.
type Store struct {
	// statePath and rootPath are free of symbolic links, so that they can be
	// compared with the kernel's mount table.
	statePath, rootPath string
	// Every access goes through these, so that no path leads out of them.
	state, root *os.Root
	bootID      string
}

// Open opens the store of the tasks' bundles. It makes the directories where
// they are missing. The caller closes the store.
func Open(state, root string) (*Store, error) { return OpenIn(state, root, Subdir) }

// OpenIn is Open for the bundles in another directory below state and root.
func OpenIn(state, root, subdir string) (*Store, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	s := &Store{bootID: strings.TrimSpace(string(boot))}
	if s.state, s.statePath, err = openDir(state, subdir); err != nil {
		return nil, err
	}
	if s.root, s.rootPath, err = openDir(root, subdir); err != nil {
		s.state.Close()
		return nil, err
	}
	return s, nil
}

func openDir(parent, subdir string) (*os.Root, string, error) {
	path := filepath.Join(parent, subdir)
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, "", fmt.Errorf("make the bundle directory: %w", err)
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, "", fmt.Errorf("open the bundle directory: %w", err)
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, "", fmt.Errorf("open the bundle directory: %w", err)
	}
	return dir, path, nil
}

// Close frees the store's file descriptors. Bundles stay.
func (s *Store) Close() error {
	return errors.Join(s.state.Close(), s.root.Close())
}

// CheckID refuses what cannot name a bundle: ids and namespaces are path
// components. The error is an InvalidArgument.
func CheckID(id task.ID) error {
	if err := identifiers.Validate(id.Namespace); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	if err := identifiers.Validate(id.Container); err != nil {
		return fmt.Errorf("container id: %w", err)
	}
	return nil
}

// Create makes the bundle and the work directory of a new task. A taken id is
// AlreadyExists. When it fails nothing is left.
func (s *Store) Create(id task.ID, spec []byte, rootGID uint32) (_ *Bundle, err error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	b := s.bundle(id)
	if err := s.state.MkdirAll(id.Namespace, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of namespace %q: %w", id.Namespace, err)
	}
	if err := s.state.Mkdir(b.rel, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("bundle of %s: %w", id, errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("make the bundle of %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Delete())
		}
	}()
	if err := b.fill(spec, rootGID); err != nil {
		return nil, fmt.Errorf("make the bundle of %s: %w", id, err)
	}
	return b, nil
}

// Load finds the bundle of a task; NotFound when there is none.
func (s *Store) Load(id task.ID) (*Bundle, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	b := s.bundle(id)
	info, err := s.state.Lstat(b.rel)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !info.IsDir()) {
		return nil, fmt.Errorf("bundle of %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("load the bundle of %s: %w", id, err)
	}
	return b, nil
}

func (s *Store) bundle(id task.ID) *Bundle {
	rel := filepath.Join(id.Namespace, id.Container)
	return &Bundle{ID: id, Path: filepath.Join(s.statePath, rel), Work: filepath.Join(s.rootPath, rel), store: s, rel: rel}
}

// remove takes a directory away in one step: renamed first, so that no one
// finds it half empty.
func remove(dir *os.Root, rel string) error {
	parent, base := filepath.Split(rel)
	hidden, err := hide(dir, rel, parent, base)
	if err != nil || hidden == "" {
		return err
	}
	return removeHidden(dir, hidden)
}

// hide renames rel to a free dotted name and returns that; "" when rel does
// not exist. The name may be taken by what an earlier removal could not clear.
func hide(dir *os.Root, rel, parent, base string) (string, error) {
	hidden := filepath.Join(parent, "."+base)
	for n := 1; ; n++ {
		err := dir.Rename(rel, hidden)
		switch {
		case err == nil:
			return hidden, nil
		case errors.Is(err, fs.ErrNotExist):
			return "", nil
		case n <= 100 && (errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR)):
			hidden = filepath.Join(parent, fmt.Sprintf(".%s.%d", base, n))
		default:
			return "", fmt.Errorf("remove: %w", err)
		}
	}
}

func removeHidden(dir *os.Root, rel string) error {
	parent, err := dir.Open(filepath.Dir(rel))
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer parent.Close()
	if err := removeTree(int(parent.Fd()), filepath.Base(rel), 0); err != nil {
		return fmt.Errorf("remove %s: %w", filepath.Join(dir.Name(), rel), err)
	}
	return nil
}
