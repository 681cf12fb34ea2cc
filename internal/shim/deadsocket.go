package shim

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// removeDeadSocket removes the socket of the bundle's group if its shim was
// killed: nobody else would. One that is served stays, and so does one whose name
// the bundle does not tell.
func removeDeadSocket(bundle string, a Args) error {
	path, known := bundleSocket(bundle, a)
	if !known {
		return nil
	}
	conn, err := net.DialTimeout("unix", path, 100*time.Millisecond)
	if err == nil {
		return conn.Close()
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return remove(path)
	}
	return nil
}

// bundleSocket is the socket of the group that a bundle's "start" used.
func bundleSocket(bundle string, a Args) (path string, known bool) {
	group, err := groupOf(bundle, a.ID)
	if err != nil {
		return "", false
	}
	dir, err := os.Readlink(filepath.Join(bundle, "s"))
	if err != nil || !filepath.IsAbs(dir) {
		return "", false
	}
	return socketPath(dir, a.Address, a.Namespace, group), true
}
