package storage

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount/manager"
)

// openMounts opens the manager of mounts that are more than a mount(2): its
// records live in the state directory, since mounts do not survive a reboot.
func (s *Store) openMounts(cfg Config, db *metadata.DB) error {
	dir := s.path(cfg.State, typeMounts, "bolt")
	bdb, err := openBolt(dir, "mounts.db")
	if err != nil {
		return err
	}
	// Transforms that make directories or file systems may do so below the root only.
	mm, err := manager.NewManager(bdb, filepath.Join(dir, "t"), manager.WithAllowedRoot(cfg.Root))
	if err != nil {
		return fmt.Errorf("open mount manager in %s: %w", dir, errors.Join(err, bdb.Close()))
	}
	if c, ok := mm.(io.Closer); ok {
		s.undo.add("mount manager", c.Close) // closes bdb too
	} else {
		s.undo.add("mount database", bdb.Close)
	}
	if c, ok := mm.(metadata.Collector); ok {
		db.RegisterCollectibleResource(metadata.ResourceMount, c)
	}
	s.Mounts = mm
	return nil
}
