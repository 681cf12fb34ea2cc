package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// The program builds, twice in one directory, and leaves no process and no mount.
func TestBuild(t *testing.T) {
	program := filepath.Join(t.TempDir(), "build")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir, err := os.MkdirTemp("/tmp", "bb-") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		harness.CheckLeft(t, dir, "")
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	image, err := testimage.New(testimage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	text := "FROM " + testimage.NewRegistry(t).Push("busybox:1", image) + " AS b\nRUN echo built > /result\nFROM scratch\nCOPY --from=b /result /\n"
	if err := os.WriteFile(filepath.Join(files, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		out := t.TempDir()
		cmd := exec.CommandContext(t.Context(), program, dir, files, out)
		cmd.Env = append(os.Environ(), "BERTH_SHIM_LINGER=200ms", "TMPDIR="+t.TempDir())
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if b, err := os.ReadFile(filepath.Join(out, "result")); err != nil || string(b) != "built\n" {
			t.Errorf("result: %q, %v", b, err)
		}
	}
}
