package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// stubs are the mount points that a step's root file system did not have. They
// are made before the step, so that the times of the directories around them
// can be put back at once, and taken away after it unless the step left
// something in them.
type stubs struct {
	root  *rootfs
	paths []string // to be removed, in this order
}

// makeStubs makes the mount points of those mounts of the spec whose
// destination is named. A mount point below another mount is the runtime's
// affair. With parents, the directories made on the way go again too.
func makeStubs(root *rootfs, spec *specs.Spec, destinations []string, parents bool) (*stubs, error) {
	s := &stubs{root: root}
	for _, m := range spec.Mounts {
		dest := filepath.Join("/", m.Destination)
		if dest == "/" || !slices.Contains(destinations, dest) || below(spec.Mounts, dest) {
			continue
		}
		if err := s.add(dest, isFile(m), parents); err != nil {
			return nil, errors.Join(fmt.Errorf("make mount point %s: %w", dest, err), s.remove())
		}
	}
	return s, nil
}

// below says whether the destination lies in another mount.
func below(mounts []specs.Mount, dest string) bool {
	return slices.ContainsFunc(mounts, func(m specs.Mount) bool {
		other := filepath.Join("/", m.Destination)
		return other == "/" || strings.HasPrefix(dest, other+"/")
	})
}

// isFile says whether a mount wants a file to be mounted on.
func isFile(m specs.Mount) bool {
	if m.Type != "bind" && m.Type != "rbind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
		return false
	}
	st, err := os.Stat(m.Source)
	return err == nil && !st.IsDir()
}

func (s *stubs) add(dest string, file, parents bool) error {
	h, err := s.root.open(dest)
	if err == nil {
		return h.Close()
	}
	if !missing(err) {
		return err
	}
	path, err := s.root.resolve(dest)
	if err != nil {
		return err
	}
	above := filepath.Dir(path)
	for above != "/" {
		h, err := s.root.open(above)
		if err == nil {
			_ = h.Close() // a handle for looking only
			break
		}
		above = filepath.Dir(above)
	}
	before, err := s.root.times(above)
	if err != nil {
		return err
	}
	err = s.make(path, file, parents)
	return errors.Join(err, before.restore())
}

func (s *stubs) make(path string, file, parents bool) error {
	dir := path
	if file {
		dir = filepath.Dir(path)
	}
	made, err := s.root.makeDir(dir, 0, 0)
	if err != nil {
		return err
	}
	switch {
	case parents && file:
		s.paths = append(s.paths, path)
		s.paths = append(s.paths, made...)
	case parents:
		s.paths = append(s.paths, made...)
	default:
		s.paths = append(s.paths, path)
	}
	if !file {
		return nil
	}
	h, err := pathrs.OpenatInRoot(s.root.handle, dir)
	if err != nil {
		return err
	}
	defer h.Close()
	fd, err := unix.Openat(int(h.Fd()), filepath.Base(path), unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// remove takes the stubs away that are still empty, and leaves the times of
// the directories around them as the step left them.
func (s *stubs) remove() error {
	var errs []error
	for _, path := range s.paths {
		if err := s.removeOne(path); err != nil && !missing(err) {
			errs = append(errs, fmt.Errorf("remove mount point %s: %w", path, err))
		}
	}
	s.paths = nil
	return errors.Join(errs...)
}

func (s *stubs) removeOne(path string) error {
	// The step may have moved a link in: only the place itself counts.
	if at, err := s.root.resolve(filepath.Dir(path)); err != nil || at != filepath.Dir(path) {
		return nil
	}
	around, err := s.root.times(filepath.Dir(path))
	if err != nil {
		return err
	}
	fd, name := int(around.dir.Fd()), filepath.Base(path)
	var st unix.Stat_t
	err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err == unix.ENOTEMPTY || err == unix.EEXIST {
			err = nil
		}
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0:
		err = unix.Unlinkat(fd, name, 0)
	}
	return errors.Join(err, around.restore())
}
