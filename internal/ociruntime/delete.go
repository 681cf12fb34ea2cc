package ociruntime

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Delete removes a container that has ended or was never started; an unknown
// one is NotFound. With force it kills what still runs first, and an unknown
// container is no error; runc then sleeps 100 ms at least, so use force only
// where it is needed.
//
// For a container of runc that has ended and leaves nothing but its cgroups and
// its state directory, Delete removes those by itself, as runc would: most of
// the time of `runc delete` goes into starting a process. Anything else, and
// any surprise, gets the call.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	if force {
		return r.simple(ctx, "delete", id, "--force")
	}
	if r.deleteEnded(id) {
		return nil
	}
	return r.simple(ctx, "delete", id)
}

// deleteEnded returns false where the runtime has to be called. What it has
// removed until then the runtime does not miss.
func (r *Runtime) deleteEnded(id string) bool {
	dir, ok := r.runcDir(id)
	if !ok {
		return false
	}
	s, ok := readRuncState(dir, id)
	if !ok || !s.ended() || s.extras() {
		return false
	}
	paths, ok := s.plainCgroups()
	if !ok {
		return false
	}
	for _, path := range paths {
		if !removeCgroup(path) {
			return false
		}
	}
	// Last: as long as it is there, the runtime knows the container.
	return os.RemoveAll(dir) == nil
}

// removeCgroup removes a cgroup that has no processes, with those below it. It
// returns false for one that has some.
func removeCgroup(path string) bool {
	err := unix.Rmdir(path)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return true
	}
	// Cgroups that the container made for itself.
	var below []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			below = append(below, p)
		}
		return err
	})
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	for _, p := range slices.Backward(below) {
		if err := unix.Rmdir(p); err != nil && !errors.Is(err, unix.ENOENT) {
			return false
		}
	}
	return true
}
