package mount

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// newBundle is a bundle directory from which nothing stays mounted.
func newBundle(t *testing.T) string {
	t.Helper()
	bundle, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range slices.Backward(mounted(t, bundle)) {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", m, err)
			}
		}
	})
	return bundle
}

// mounted lists the mount points below dir.
func mounted(t *testing.T, dir string) []string {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, m := range infos {
		points = append(points, m.Mountpoint)
	}
	return points
}

// tree makes a directory with these files; a name that ends in / is a directory.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func bind(source string, more ...string) task.Mount {
	return task.Mount{Type: "bind", Source: source, Options: append([]string{"rbind"}, more...)}
}

func mustMount(t *testing.T, bundle string, mounts ...task.Mount) string {
	t.Helper()
	root, err := Rootfs(bundle, mounts)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func mustUnmount(t *testing.T, bundle string) {
	t.Helper()
	if err := Unmount(bundle); err != nil {
		t.Error(err)
	}
	if left := mounted(t, bundle); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestBind(t *testing.T) {
	bundle := newBundle(t)
	root := mustMount(t, bundle, bind(tree(t, "etc/hosts"), "ro"))
	if root != filepath.Join(bundle, "rootfs") {
		t.Errorf("mounted on %s", root)
	}
	if !exists(filepath.Join(root, "etc/hosts")) {
		t.Error("the source does not show")
	}
	if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600); err == nil {
		t.Error("a mount with ro takes a file")
	}
	mustUnmount(t, bundle)
	if exists(filepath.Join(root, "etc")) {
		t.Error("the source still shows")
	}
	mustUnmount(t, bundle) // nothing left to do
}

func TestOverlay(t *testing.T) {
	bundle := newBundle(t)
	lower, upper, work := tree(t, "old"), t.TempDir(), t.TempDir()
	root := mustMount(t, bundle, task.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + lower, "upperdir=" + upper, "workdir=" + work,
	}})
	if err := os.Rename(filepath.Join(root, "old"), filepath.Join(root, "new")); err != nil {
		t.Error(err)
	}
	mustUnmount(t, bundle)
	if !exists(filepath.Join(lower, "old")) || !exists(filepath.Join(upper, "new")) {
		t.Error("the change went to the wrong layer")
	}
}

func TestNoMounts(t *testing.T) {
	bundle := newBundle(t)
	if root := mustMount(t, bundle); root != "" {
		t.Errorf("root %q", root)
	}
	if exists(filepath.Join(bundle, "rootfs")) {
		t.Error("a directory was made")
	}
	mustUnmount(t, bundle)
	mustUnmount(t, filepath.Join(bundle, "no-such-bundle"))
}

func TestFailureLeavesNothing(t *testing.T) {
	for name, mounts := range map[string][]task.Mount{
		"second on top":   {bind(tree(t, "a")), bind("/no/such/source")},
		"second below":    {bind(tree(t, "sub/")), {Type: "bind", Source: "/no/such", Target: "sub", Options: []string{"bind"}}},
		"unknown type":    {bind(tree(t, "a")), {Type: "nosuchfs", Source: "none"}},
		"only ones below": {{Type: "bind", Source: tree(t, "a"), Target: "sub", Options: []string{"bind"}}, bind("/no/such/source")},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := newBundle(t)
			if err := os.MkdirAll(filepath.Join(bundle, "rootfs", "sub"), 0o711); err != nil {
				t.Fatal(err)
			}
			if root, err := Rootfs(bundle, mounts); err == nil {
				t.Errorf("mounted on %s", root)
			}
			if left := mounted(t, bundle); len(left) > 0 {
				t.Errorf("left mounted: %q", left)
			}
		})
	}
}

// private makes dir a mount that passes nothing on.
func private(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

// A stack, mounts below, mounts below that another one hides, and mounts below
// a directory that is none itself.
func TestUnmountTakesAll(t *testing.T) {
	sub := func(source string) task.Mount {
		return task.Mount{Type: "bind", Source: source, Target: "sub", Options: []string{"bind"}}
	}
	a, b := tree(t, "sub/deep/"), tree(t, "deep/")
	// Where / is shared, as under systemd, a mount on one of these binds would
	// show on the other one too.
	private(t, a)
	private(t, b)
	for name, mounts := range map[string][]task.Mount{
		"stack":  {bind(a), bind(a), bind(b)},
		"nested": {bind(a), sub(b), sub(b), {Type: "tmpfs", Source: "tmpfs", Target: "sub/deep"}},
		"hidden": {bind(a), sub(b), bind(b)},
		"below":  {sub(b)},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := newBundle(t)
			if err := os.MkdirAll(filepath.Join(bundle, "rootfs", "sub"), 0o711); err != nil {
				t.Fatal(err)
			}
			mustMount(t, bundle, mounts...)
			if n := len(mounted(t, bundle)); n != len(mounts) {
				t.Fatalf("%d mounts, want %d", n, len(mounts))
			}
			mustUnmount(t, bundle)
			for _, dir := range []string{filepath.Join(a, "sub/deep"), filepath.Join(b, "deep")} {
				if !exists(dir) {
					t.Errorf("%s is gone: a source was taken apart", dir)
				}
			}
		})
	}
}

// A process with its working directory in the mount holds up the end for a
// moment only: the name goes, the mount follows the process.
func TestBusyMountIsDetached(t *testing.T) {
	bundle := newBundle(t)
	root := mustMount(t, bundle, bind(tree(t, "sub/")), task.Mount{Type: "tmpfs", Source: "tmpfs", Target: "sub"})
	cmd := exec.Command("/bin/cat")
	cmd.Dir = filepath.Join(root, "sub")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close() // the end of cat
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	started := time.Now()
	mustUnmount(t, bundle)
	if took := time.Since(started); took < busyGrace || took > 10*busyGrace {
		t.Errorf("took %s", took)
	}
	if err := os.Remove(root); err != nil {
		t.Errorf("the directory is still held: %v", err)
	}
}

// A link in the place of the root file system leads neither a mount nor an
// unmount elsewhere.
func TestLinkIsNotFollowed(t *testing.T) {
	bundle, other := newBundle(t), newBundle(t)
	elsewhere := mustMount(t, other, bind(tree(t, "kept")))
	if err := os.Symlink(elsewhere, filepath.Join(bundle, "rootfs")); err != nil {
		t.Fatal(err)
	}
	if _, err := Rootfs(bundle, []task.Mount{bind(tree(t, "wrong"))}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v", err)
	}
	if err := Unmount(bundle); err != nil {
		t.Error(err)
	}
	if n := len(mounted(t, other)); n != 1 || !exists(filepath.Join(elsewhere, "kept")) {
		t.Errorf("%d mounts where the link leads", n)
	}
	mustUnmount(t, other)
}

// The mount table knows the bundle by another name when a link leads to it.
func TestBundleBehindLink(t *testing.T) {
	bundle := newBundle(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(bundle, link); err != nil {
		t.Fatal(err)
	}
	mustMount(t, link, bind(tree(t, "sub/")), task.Mount{Type: "tmpfs", Source: "tmpfs", Target: "sub"})
	if err := Unmount(link); err != nil {
		t.Error(err)
	}
	if left := mounted(t, bundle); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
}
