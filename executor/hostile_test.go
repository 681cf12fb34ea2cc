package executor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	bk "github.com/moby/buildkit/executor"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/executor"
)

// A root file system is somebody else's: nothing in it leads out, nothing in
// it makes the executor wait, and what it can make it read is bounded.
func TestHostileRootfs(t *testing.T) {
	each(t, executor.Config{}, testHostileRootfs)
}

func testHostileRootfs(t *testing.T, l *lab) {
	outside := t.TempDir()
	write(t, outside, "passwd", "evil:x:4242:4242::/:/bin/sh\n")
	write(t, outside, "target", "")
	evil := sh("id")
	evil.User = "evil"
	for _, c := range []struct {
		name   string
		make   func(etc string) error
		meta   bk.Meta
		mounts []bk.Mount
		fails  string // empty: the step has to run
		// peer is what BuildKit's own executor does; docs/executor.md lists it.
		peer string
	}{
		{
			name: "passwd is a link out", meta: evil, fails: "unable to find user evil", peer: "unable to find user evil",
			make: func(etc string) error { return relink(etc, "passwd", filepath.Join(outside, "passwd")) },
		},
		{
			name: "passwd climbs out", meta: evil, fails: "unable to find user evil", peer: "unable to find user evil",
			make: func(etc string) error {
				return relink(etc, "passwd", strings.Repeat("../", 40)+filepath.Join(outside, "passwd"))
			},
		},
		{
			name: "group is a FIFO", meta: evil, fails: "/etc/group is not a regular file", peer: "unable to find user evil",
			make: func(etc string) error {
				return replace(etc, "group", func(p string) error { return unix.Mkfifo(p, 0o666) })
			},
		},
		{
			name: "group is a device", meta: evil, fails: "/etc/group is not a regular file", peer: "unable to find user evil",
			make: func(etc string) error {
				return replace(etc, "group", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, 5) }) // /dev/zero
			},
		},
		{
			name: "passwd of 1 GiB", meta: evil, fails: "/etc/passwd has 1073741824 bytes", peer: "token too long",
			make: func(etc string) error { return os.Truncate(filepath.Join(etc, "passwd"), 1<<30) },
		},
		{
			name: "uid that wraps around", meta: evil, fails: "out of range",
			make: func(etc string) error {
				return os.WriteFile(filepath.Join(etc, "passwd"), []byte("evil:x:4294967296:0::/:/bin/sh\n"), 0o644)
			},
		},
		{
			name: "passwd is a FIFO and nobody asks", meta: sh("true"), fails: "/etc/passwd is not a regular file", peer: hangs,
			make: func(etc string) error {
				return replace(etc, "passwd", func(p string) error { return unix.Mkfifo(p, 0o666) })
			},
		},
		{
			name: "resolv.conf and hosts lead out", meta: sh("true"),
			make: func(etc string) error {
				for _, n := range []string{"resolv.conf", "hosts"} {
					if err := relink(etc, n, filepath.Join(outside, "new-"+n)); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			name: "working directory leads out", meta: cwd("/etc/out/made"),
			make: func(etc string) error { return relink(etc, "out", outside) },
		},
		{
			name: "mount point leads out", meta: sh("true"),
			mounts: []bk.Mount{{Src: source(t.TempDir()), Dest: "/etc/out/mounted"}},
			make:   func(etc string) error { return relink(etc, "out", outside) },
		},
		{
			name: "etc is a link out", meta: sh("true"),
			make: func(etc string) error {
				return replace(filepath.Dir(etc), "etc", func(p string) error { return os.Symlink(outside, p) })
			},
		},
	} {
		root := rootfs(t)
		if err := c.make(filepath.Join(root, "etc")); err != nil {
			t.Fatal(err)
		}
		want := c.fails
		if l.peer {
			want = c.peer
		}
		if want == hangs {
			continue
		}
		r := l.run(t.Context(), root, c.meta, c.mounts...)
		switch {
		case want == "" && r.failed != nil:
			t.Errorf("%s: %v", c.name, r.failed)
		case want != "" && (r.failed == nil || !strings.Contains(r.failed.Error(), want)):
			t.Errorf("%s: %v, want %q", c.name, r.failed, want)
		case r.failed != nil && strings.Contains(r.failed.Error(), root):
			t.Errorf("%s: the error names a path of this machine: %v", c.name, r.failed)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 2 {
		t.Errorf("outside the root file systems: %v, %v", entries, err)
	}
}

func cwd(path string) bk.Meta {
	m := sh("true")
	m.Cwd = path
	return m
}

func relink(dir, name, target string) error {
	return replace(dir, name, func(p string) error { return os.Symlink(target, p) })
}

// replace puts something else where name is.
func replace(dir, name string, with func(path string) error) error {
	path := filepath.Join(dir, name)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return with(path)
}

// hangs is what nobody waits for.
const hangs = "waits for ever"
