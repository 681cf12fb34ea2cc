package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

func open(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(filepath.Join(dir, "state"), filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func create(t *testing.T, s *Store, id string) *Bundle {
	t.Helper()
	b, err := s.Create(task.ID{Namespace: "ns", Container: id}, []byte(`{"ociVersion":"1.2.0"}`), 0)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestCreateLaysOutTheBundle(t *testing.T) {
	s := open(t)
	b := create(t, s, "c1")
	if got := mode(t, b.Path); got != fs.ModeDir|0o700 {
		t.Errorf("bundle has mode %v", got)
	}
	if got := mode(t, filepath.Join(b.Path, RootfsDir)); got != fs.ModeDir|0o711 {
		t.Errorf("rootfs has mode %v", got)
	}
	if got := mode(t, filepath.Dir(b.Path)); got != fs.ModeDir|0o711 {
		t.Errorf("namespace directory has mode %v", got)
	}
	if to, err := os.Readlink(filepath.Join(b.Path, WorkLink)); err != nil || to != b.Work {
		t.Errorf("work leads to %q, %v; want %q", to, err, b.Work)
	}
	if got := mode(t, b.Work); got != fs.ModeDir|0o711 {
		t.Errorf("work directory has mode %v", got)
	}
	if spec, err := b.ReadFile(SpecFile, MaxSpec); err != nil || string(spec) != `{"ociVersion":"1.2.0"}` {
		t.Errorf("spec is %q, %v", spec, err)
	}
	if b.EarlierBoot() {
		t.Error("a new bundle is of this boot")
	}
	if _, err := s.Create(b.ID, nil, 0); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
}

func TestCreateForAUserNamespace(t *testing.T) {
	s := open(t)
	spec, err := ParseSpec([]byte(`{"linux":{"gidMappings":[{"containerID":5,"hostID":7,"size":1},{"containerID":0,"hostID":4242,"size":10}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Create(task.ID{Namespace: "ns", Container: "u"}, nil, spec.RootGID)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(b.Path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Gid != 4242 || st.Mode&0o777 != 0o710 {
		t.Errorf("bundle has group %d and mode %o, want 4242 and 710", st.Gid, st.Mode&0o777)
	}
}

func TestIDsThatLeaveTheDirectoryAreRefused(t *testing.T) {
	s := open(t)
	for _, id := range []task.ID{
		{Namespace: "ns", Container: ".."},
		{Namespace: "..", Container: "c"},
		{Namespace: "ns", Container: "a/b"},
		{Namespace: "ns", Container: ".hidden"},
		{Namespace: "ns", Container: ""},
		{Namespace: "ns", Container: "nul\x00"},
		{Namespace: "ns", Container: strings.Repeat("x", 77)},
	} {
		if _, err := s.Create(id, nil, 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("create %q: %v, want InvalidArgument", id, err)
		}
		if _, err := s.Load(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("load %q: %v, want InvalidArgument", id, err)
		}
	}
	if got := entries(t, s.statePath); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

func TestReadFileIsBoundedAndStaysInside(t *testing.T) {
	s := open(t)
	b := create(t, s, "c1")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(b.Path, "link")); err != nil {
		t.Fatal(err)
	}
	if data, err := b.ReadFile("link", 10); err == nil {
		t.Errorf("read %q through a link that leads out", data)
	}
	if _, err := b.ReadFile(SpecFile, 3); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("read of a file that is too long: %v", err)
	}
	if _, err := b.ReadFile("none", 3); !errdefs.IsNotFound(err) {
		t.Errorf("read of a missing file: %v", err)
	}
	log, err := b.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if got := mode(t, filepath.Join(b.Path, LogFIFO)); got != fs.ModeNamedPipe|0o700 {
		t.Errorf("log has mode %v", got)
	}
	if _, err := b.ReadFile(LogFIFO, 3); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("read of a FIFO: %v", err)
	}
}

func TestDeleteUnmountsAndRemovesAll(t *testing.T) {
	s := open(t)
	b := create(t, s, "c1")
	rootfs := filepath.Join(b.Path, RootfsDir)
	for _, dir := range []string{rootfs, filepath.Join(rootfs, "inner")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	// One more on top of the first, as a remount of an overlay leaves it.
	busy, err := os.Create(filepath.Join(rootfs, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := b.Delete(); err != nil {
		t.Fatal(err)
	}
	if got := append(entries(t, filepath.Dir(b.Path)), entries(t, filepath.Dir(b.Work))...); len(got) != 0 {
		t.Errorf("left %v", got)
	}
	if err := b.Delete(); err != nil {
		t.Errorf("second delete: %v", err)
	}
}

// A mount elsewhere in the bundle is not known to be ours to unmount; removing
// what it shows would lose someone's data.
func TestDeleteEntersNoMount(t *testing.T) {
	s := open(t)
	b := create(t, s, "c1")
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.Path, "volume")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(data, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	hidden := filepath.Join(filepath.Dir(b.Path), ".c1", "volume")
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH); unix.Unmount(hidden, unix.MNT_DETACH) })
	if err := b.Delete(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("delete over a mount: %v, want FailedPrecondition", err)
	}
	if _, err := os.Stat(filepath.Join(data, "precious")); err != nil {
		t.Error(err)
	}
	// The id is free all the same, and the leftover can be swept later.
	create(t, s, "c1")
	if err := unix.Unmount(hidden, 0); err != nil {
		t.Fatal(err)
	}
	ids, left, err := s.Scan()
	if err != nil || len(ids) != 1 || len(left) != 1 {
		t.Fatalf("scan: %v, %d leftovers, %v", ids, len(left), err)
	}
	if err := s.Sweep(left); err != nil {
		t.Error(err)
	}
	if got := entries(t, filepath.Dir(b.Path)); !slices.Equal(got, []string{"c1"}) {
		t.Errorf("left %v", got)
	}
}

func TestScanFindsBundlesAndLeftovers(t *testing.T) {
	s := open(t)
	create(t, s, "b")
	create(t, s, "a")
	orphan := filepath.Join(s.rootPath, "ns", "gone", "deep")
	if err := os.MkdirAll(orphan, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.statePath, "ns", ".x", "rootfs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.statePath, "ns", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ids, left, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	if want := []task.ID{{Namespace: "ns", Container: "a"}, {Namespace: "ns", Container: "b"}}; !slices.Equal(ids, want) {
		t.Errorf("bundles %v, want %v", ids, want)
	}
	if err := s.Sweep(left); err != nil {
		t.Error(err)
	}
	if got := entries(t, filepath.Join(s.statePath, "ns")); !slices.Equal(got, []string{"a", "b", "file"}) {
		t.Errorf("state holds %v", got)
	}
	if got := entries(t, filepath.Join(s.rootPath, "ns")); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("root holds %v", got)
	}
}

func TestEarlierBoot(t *testing.T) {
	s := open(t)
	b := create(t, s, "c1")
	if err := b.WriteFile(bootFile, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !b.EarlierBoot() {
		t.Error("not recognised")
	}
	if err := os.Remove(filepath.Join(b.Path, bootFile)); err != nil {
		t.Fatal(err)
	}
	if b.EarlierBoot() {
		t.Error("a bundle of another engine counts as of this boot")
	}
}

func TestParseSpecRefusesWhatIsNone(t *testing.T) {
	for name, data := range map[string][]byte{
		"not JSON":  []byte("x"),
		"wrong":     []byte(`{"annotations":3}`),
		"too large": make([]byte, MaxSpec+1),
	} {
		if _, err := ParseSpec(data); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}
