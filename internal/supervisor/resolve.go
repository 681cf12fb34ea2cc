package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// runtime is a shim binary that a runtime name leads to.
type runtime struct {
	// path is absolute.
	path string
	// own says that the binary is Berth's shim, which is reached directly.
	own bool
}

// resolve finds the shim of a runtime: the absolute path of a binary, or a
// name "….<name>.<version>", which is the binary
// containerd-shim-<name>-<version> in PATH or beside the program. The working
// directory is not searched.
func (s *Supervisor) resolve(name string) (runtime, error) {
	switch {
	case name == "" || slices.Contains(s.cfg.OwnRuntimes, name):
		if s.cfg.ShimBinary == "" {
			return runtime{}, fmt.Errorf("the shim %s of Berth is neither beside the daemon nor in PATH; install it or set its path: %w", ownShim, errdefs.ErrNotFound)
		}
		return runtime{path: s.cfg.ShimBinary, own: true}, executable(s.cfg.ShimBinary)
	case filepath.IsAbs(name):
		if err := executable(name); err != nil {
			return runtime{}, fmt.Errorf("runtime binary: %w", err)
		}
		return runtime{path: filepath.Clean(name), own: sameFile(name, s.cfg.ShimBinary)}, nil
	case strings.ContainsAny(name, "/\x00"):
		return runtime{}, fmt.Errorf("runtime %q is neither a name nor an absolute path: %w", name, errdefs.ErrInvalidArgument)
	}
	binary, err := binaryName(name)
	if err != nil {
		return runtime{}, err
	}
	if path, err := exec.LookPath(binary); err == nil && filepath.IsAbs(path) {
		return runtime{path: path, own: sameFile(path, s.cfg.ShimBinary)}, nil
	}
	if beside := filepath.Join(filepath.Dir(s.cfg.Binary), binary); executable(beside) == nil {
		return runtime{path: beside, own: sameFile(beside, s.cfg.ShimBinary)}, nil
	}
	return runtime{}, fmt.Errorf("runtime %q: its shim %s is not in PATH; install it or name its absolute path: %w", name, binary, errdefs.ErrNotFound)
}

func binaryName(runtime string) (string, error) {
	parts := strings.Split(runtime, ".")
	if n := len(parts); n >= 2 && parts[0] != "" && parts[n-2] != "" && parts[n-1] != "" {
		return fmt.Sprintf("containerd-shim-%s-%s", parts[n-2], parts[n-1]), nil
	}
	return "", fmt.Errorf("runtime name %q is not of the form prefix.name.version: %w", runtime, errdefs.ErrInvalidArgument)
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s does not exist: %w", path, errdefs.ErrNotFound)
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not an executable file: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

func sameFile(a, b string) bool {
	ia, err := os.Stat(a)
	if err != nil {
		return false
	}
	ib, err := os.Stat(b)
	return err == nil && os.SameFile(ia, ib)
}
