package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a program that was killed left mounted among its temporary files is
// unmounted, and not emptied, also where the root is named by a link.
func TestTakeRoot(t *testing.T) {
	dir, kept := t.TempDir(), filepath.Join(t.TempDir(), "file")
	link, mounted := filepath.Join(dir, "link"), filepath.Join(dir, "real", "tmp", "mounted")
	for _, err := range []error{
		os.WriteFile(kept, nil, 0o600), os.MkdirAll(mounted, 0o700), os.Symlink("real", link),
		unix.Mount(filepath.Dir(kept), mounted, "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TMPDIR", os.TempDir()) // which takeRoot changes
	lock, err := takeRoot(link)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what was mounted is emptied: %v", err)
	}
	if _, err := os.Stat(mounted); !os.IsNotExist(err) {
		t.Errorf("the mount point is left: %v", err)
	}
	if _, err := takeRoot(filepath.Join(dir, "real")); err == nil {
		t.Error("the root was taken twice")
	}
}
