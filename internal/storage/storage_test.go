package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

func openStore(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Root == "" {
		cfg.Root = filepath.Join(t.TempDir(), "root")
	}
	if cfg.State == "" {
		cfg.State = filepath.Join(t.TempDir(), "state")
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), "test")
}

func TestLayoutIsContainerds(t *testing.T) {
	root, state := filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "state")
	s := openStore(t, Config{Root: root, State: state})
	for dir, perm := range map[string]os.FileMode{root: 0o700, state: 0o711} {
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != perm {
			t.Errorf("%s has mode %o, want %o", dir, st.Mode().Perm(), perm)
		}
	}
	for _, p := range []string{
		"io.containerd.content.v1.content",
		"io.containerd.metadata.v1.bolt/meta.db",
		"io.containerd.snapshotter.v1.overlayfs",
		"io.containerd.snapshotter.v1.native",
	} {
		if _, err := os.Stat(filepath.Join(root, p)); err != nil {
			t.Error(err)
		}
	}
	if got := s.DefaultSnapshotter(); got != Overlay {
		t.Errorf("default snapshotter %q, want %q", got, Overlay)
	}
	for _, d := range s.Descriptors() {
		if d.InitErr != nil {
			t.Errorf("%s.%s: %v", d.Type, d.ID, d.InitErr)
		}
	}
}

func TestOpenOfARootInUseNamesTheProcess(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	openStore(t, Config{Root: root})
	_, err := Open(t.Context(), Config{Root: root, State: t.TempDir()})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Fatalf("error %v, want FailedPrecondition that names process %d", err, os.Getpid())
	}
}

func TestLockHolderIn(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 7 fe:00:131 0 EOF
2: FLOCK  ADVISORY  WRITE 42 fe:00:131 0 EOF
2: -> FLOCK  ADVISORY  WRITE 43 fe:00:131 0 EOF
3: FLOCK  ADVISORY  READ 44 fe:00:132 0 EOF
`
	for file, want := range map[string]string{
		"fe:00:131": "process 42",
		"fe:00:132": "process 44",
		"fe:00:133": "another process",
	} {
		if got := lockHolderIn(locks, file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

func TestOpenOfADamagedDatabase(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	dir := filepath.Join(root, "io.containerd.metadata.v1.bolt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "meta.db"), []byte(strings.Repeat("garbage!", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{Root: root, State: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Fatalf("error %v, want one that says the database is damaged", err)
	}
}

func TestFailedOpenLeavesNothingLocked(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	_, err := Open(t.Context(), Config{Root: root, State: state, Snapshotter: "zfs"})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "[native overlayfs]") {
		t.Fatalf("error %v, want InvalidArgument that lists what there is", err)
	}
	openStore(t, Config{Root: root, State: state})
}

func TestOpenNeedsDirectories(t *testing.T) {
	if _, err := Open(t.Context(), Config{State: t.TempDir()}); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("error %v, want InvalidArgument", err)
	}
}

// A root on an overlay mount cannot hold the upper directories of overlays.
func TestNativeWhereOverlayDoesNotWork(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "merged")
	mountOverlay(t, dir, root)
	s := openStore(t, Config{Root: root})
	if got := s.DefaultSnapshotter(); got != Native {
		t.Errorf("default snapshotter %q, want %q", got, Native)
	}
	var seen bool
	for _, d := range s.Descriptors() {
		if d.Type == typeSnapshotter && d.ID == Overlay {
			seen = true
			if d.InitErr == nil {
				t.Error("overlayfs is described as working")
			}
		}
	}
	if !seen {
		t.Error("overlayfs is not described at all")
	}
	if _, err := s.Snapshotter(Overlay); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v, want InvalidArgument", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Root: root, State: t.TempDir(), Snapshotter: Overlay}); err == nil {
		t.Error("overlayfs was asked for by name, does not work, and Open did not say so")
	}
}

func TestNamespacesUpdateIsAllOrNothing(t *testing.T) {
	s := openStore(t, Config{})
	ctx := t.Context()
	if err := s.Namespaces.Create(ctx, "a", map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := s.Namespaces.Update(func(ns namespaces.Store) error {
		if err := ns.SetLabel(ctx, "a", "k", "changed"); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("error %v, want %v", err, boom)
	}
	labels, err := s.Namespaces.Labels(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if labels["k"] != "v" {
		t.Errorf("labels %v, want the old ones", labels)
	}
	if err := s.Namespaces.Create(ctx, "a", nil); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
	if names, err := s.Namespaces.List(ctx); err != nil || len(names) != 1 {
		t.Errorf("list: %v %v, want one name", names, err)
	}
	if err := s.Namespaces.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Namespaces.Delete(ctx, "a"); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v, want NotFound", err)
	}
}

// What was stored is there after a restart, what a crash left over is not.
func TestReopen(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	ctx := testContext(t)
	s := openStore(t, Config{Root: root})
	if _, err := s.Leases.Create(ctx, leases.WithID("l")); err != nil {
		t.Fatal(err)
	}
	sn, err := s.Snapshotter("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Prepare(leases.WithLease(ctx, "l"), "kept", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The database removes a snapshot first, its directory later: a kill in
	// between leaves the directory.
	dirs := filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs", "snapshots")
	orphan := filepath.Join(dirs, "4711")
	if err := os.MkdirAll(filepath.Join(orphan, "fs"), 0o755); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, Config{Root: root})
	sn, err = s.Snapshotter("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Stat(ctx, "kept"); err != nil {
		t.Error(err)
	}
	if _, err := s.GC.ScheduleAndWait(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(orphan); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want no such directory", orphan, err)
	}
	if left, err := os.ReadDir(dirs); err != nil || len(left) != 1 {
		t.Errorf("directories %v %v, want that of the snapshot", left, err)
	}
}
