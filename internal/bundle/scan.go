package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/task"
)

// Leftover is a directory that belongs to no task.
type Leftover struct {
	dir *os.Root
	rel string
}

// Scan lists the bundles on disk, ordered, and what crashed removals left. It
// hides work directories that have no bundle, and makes leftovers of them;
// therefore it has to run before bundles are made.
func (s *Store) Scan() ([]task.ID, []Leftover, error) {
	var left []Leftover
	ids, hidden, err := list(s.state)
	if err != nil {
		return nil, nil, fmt.Errorf("list the bundles in %s: %w", s.statePath, err)
	}
	left = append(left, hidden...)
	works, hidden, err := list(s.root)
	if err != nil {
		return nil, nil, fmt.Errorf("list the work directories in %s: %w", s.rootPath, err)
	}
	left = append(left, hidden...)
	known := make(map[task.ID]bool, len(ids))
	for _, id := range ids {
		known[id] = true
	}
	for _, id := range works {
		if known[id] {
			continue
		}
		rel, err := hide(s.root, filepath.Join(id.Namespace, id.Container), id.Namespace, id.Container)
		if err != nil {
			return nil, nil, err
		}
		left = append(left, Leftover{s.root, rel})
	}
	return ids, left, nil
}

// Sweep removes leftovers. One that cannot be removed does not keep the
// others.
func (s *Store) Sweep(left []Leftover) error {
	var errs []error
	for _, l := range left {
		rootfs := filepath.Join(l.dir.Name(), l.rel, RootfsDir)
		if err := unmountAll(rootfs); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, removeHidden(l.dir, l.rel))
	}
	return errors.Join(errs...)
}

// list returns the tasks that have a directory in dir, and the hidden
// directories. Names that no task can have are none of ours: left alone.
func list(dir *os.Root) ([]task.ID, []Leftover, error) {
	var ids []task.ID
	var hidden []Leftover
	namespaces, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return nil, nil, err
	}
	for _, ns := range namespaces {
		if !ns.IsDir() || strings.HasPrefix(ns.Name(), ".") {
			continue
		}
		entries, err := fs.ReadDir(dir.FS(), ns.Name())
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			id := task.ID{Namespace: ns.Name(), Container: e.Name()}
			switch {
			case !e.IsDir():
			case strings.HasPrefix(e.Name(), "."):
				hidden = append(hidden, Leftover{dir, filepath.Join(ns.Name(), e.Name())})
			case CheckID(id) == nil:
				ids = append(ids, id)
			}
		}
	}
	return ids, hidden, nil
}
