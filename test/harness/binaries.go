package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Binaries are the programs under test and their peers, as absolute paths. Runc
// is the one in PATH, or what BERTH_TEST_RUNC names.
type Binaries struct {
	Berth, Berthd, Shim              string
	Containerd, Ctr, StockShim, Runc string
}

// What is built once in a test process.
var (
	makeBuild = sync.OnceValue(func() error { return runMake("build") })
	makePeers = sync.OnceValue(func() error { return runMake("peers") })
	// makeBuildKit takes minutes on a new machine.
	makeDebian   = sync.OnceValue(func() error { return runMake("peers-debian") })
	makeBuildKit = sync.OnceValue(func() error { return runMake("peers-buildkit") })
)

func runMake(target string) error {
	root, err := sourceRoot()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", target)
	cmd.Dir = root
	// The test may run under make: the flags of that one are not for this one.
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w\n%s", target, err, out)
	}
	return nil
}

func sourceRoot() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("the place of the sources is unknown: do not build these tests with -trimpath")
	}
	return filepath.Join(filepath.Dir(file), "..", ".."), nil
}

// built builds Berth's programs and their peers, and returns their directories.
// Where BERTH_TEST_PROGRAMS names a directory that has all of them, as on a
// machine without a compiler, nothing is built.
func built() (bin, peers string, err error) {
	if dir := os.Getenv("BERTH_TEST_PROGRAMS"); dir != "" {
		return dir, dir, nil
	}
	if err := makePeers(); err != nil {
		return "", "", err
	}
	if err := makeBuild(); err != nil {
		return "", "", err
	}
	root, err := sourceRoot()
	return filepath.Join(root, "bin"), filepath.Join(root, "out", "peers", "bin"), err
}

// programs returns the programs under test and their peers; they are built on
// first use. Stock containerd has berth as a client too.
func programs() (*Binaries, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("these tests make containers: run them as root")
	}
	bin, peers, err := built()
	if err != nil {
		return nil, err
	}
	b := &Binaries{
		Berth:      filepath.Join(bin, "berth"),
		Berthd:     filepath.Join(bin, "berthd"),
		Shim:       filepath.Join(bin, "containerd-shim-berth-v2"),
		Containerd: filepath.Join(peers, "containerd"),
		Ctr:        filepath.Join(peers, "ctr"),
		StockShim:  filepath.Join(peers, "containerd-shim-runc-v2"),
		Runc:       os.Getenv("BERTH_TEST_RUNC"),
	}
	if b.Runc == "" {
		if b.Runc, err = exec.LookPath("runc"); err != nil {
			return nil, fmt.Errorf("runc is not installed, scripts/deps test installs it: %w", err)
		}
	}
	return b, nil
}

// BuildKit returns the paths of buildkitd and buildctl, which are built on
// first use.
func BuildKit(tb testing.TB) (daemon, client string) {
	tb.Helper()
	if err := makeBuildKit(); err != nil {
		tb.Fatal(err)
	}
	root, err := sourceRoot()
	if err != nil {
		tb.Fatal(err)
	}
	peers := filepath.Join(root, "out", "peers", "bin")
	return filepath.Join(peers, "buildkitd"), filepath.Join(peers, "buildctl")
}

// containerd16 puts Debian's containerd 1.6 and its ctr in the place of 2.4.
func (b *Binaries) containerd16() error {
	if err := makeDebian(); err != nil {
		return err
	}
	b.Containerd, b.Ctr = b.Containerd+"-1.6", b.Ctr+"-1.6"
	return nil
}

// Shim returns the path of Berth's shim, for a test that puts it under another
// daemon.
func Shim(tb testing.TB) string {
	tb.Helper()
	b, err := programs()
	if err != nil {
		tb.Fatal(err)
	}
	return b.Shim
}
