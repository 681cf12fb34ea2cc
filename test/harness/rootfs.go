package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Rootfs makes a directory with busybox that a container can have as its root.
func Rootfs(tb testing.TB) string {
	tb.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		tb.Fatalf("busybox is not installed, scripts/deps test installs it: %v", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		tb.Fatal(err)
	}
	root := filepath.Join(tb.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), program, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "echo", "id", "ls", "pwd", "sleep", "true"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			tb.Fatal(err)
		}
	}
	return root
}
