package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// lockTimeout is how long Open waits for another process to let go of a
// database: enough for a predecessor that is about to end.
const lockTimeout = 2 * time.Second

// openBolt opens a database in a directory of its own, which it creates.
func openBolt(dir, name string) (*bolt.DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create database directory: %w", err)
	}
	path := filepath.Join(dir, name)
	opts := *bolt.DefaultOptions
	opts.Timeout = lockTimeout
	// Nobody reads the statistics, and counting costs a lock a transaction.
	opts.NoStatistics = true
	// The free list stays in the file (the default): without it an open reads
	// every page, 100 ms for 100 MB.
	opts.NoFreelistSync = false
	opts.FreelistType = bolt.FreelistMapType
	db, err := bolt.Open(path, 0o600, &opts)
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("database %s is in use by %s: stop it or choose another root: %w",
			path, lockHolder(path), errdefs.ErrFailedPrecondition)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("database %s is damaged (%w): restore it from a copy, or move it away to start empty", path, err)
	}
	return nil, fmt.Errorf("open database %s: %w", path, err)
}

// lockHolder names the process that holds a flock on the file.
func lockHolder(path string) string {
	const unknown = "another process"
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return unknown
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	return lockHolderIn(string(locks), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
}

// lockHolderIn finds the file ("major:minor:inode", the device in hex) in the
// text of /proc/locks, whose lines read
//
//	1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF
func lockHolderIn(locks, file string) string {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line)
		// A waiter has "->" as its second field and so does not match.
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == file {
			return "process " + f[4]
		}
	}
	return "another process"
}
