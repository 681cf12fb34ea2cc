// Package faketest gives tests the fake OCI runtime.
//
//	func TestMain(m *testing.M) { os.Exit(faketest.Run(m)) }
//
//	func TestX(t *testing.T) { binary := faketest.Binary(t); … }
package faketest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/fakeoci/fault"
)

// build is the binary of this test process: made once, at its first use,
// removed by Run.
var build struct {
	mu      sync.Mutex
	running bool
	dir     string
	err     error
}

// Run runs the tests of a package and removes the binary after them.
func Run(m *testing.M) int {
	build.mu.Lock()
	build.running = true
	build.mu.Unlock()
	code := m.Run()
	build.mu.Lock()
	defer build.mu.Unlock()
	if err := os.RemoveAll(build.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// Binary returns the path of the fake runtime: the one in BERTH_TEST_PROGRAMS,
// where that is set, else one that is built.
func Binary(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("BERTH_TEST_PROGRAMS"); dir != "" {
		return filepath.Join(dir, "fakeoci")
	}
	build.mu.Lock()
	defer build.mu.Unlock()
	if !build.running {
		t.Fatal("faketest.Binary needs faketest.Run in TestMain")
	}
	if build.dir == "" && build.err == nil {
		build.err = buildLocked()
	}
	if build.err != nil {
		t.Fatal(build.err)
	}
	return filepath.Join(build.dir, "fakeoci")
}

func buildLocked() error {
	dir, err := os.MkdirTemp("", "fakeoci")
	if err != nil {
		return err
	}
	build.dir = dir
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "fakeoci"), "github.com/berthd/berth/test/fakeoci")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build fakeoci: %w\n%s", err, out)
	}
	return nil
}

// Order replaces the failures that the runtime makes under root (its --root, or
// another directory that package fault names). Counts start again.
func Order(t testing.TB, root string, rules ...fault.Rule) {
	t.Helper()
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	f := fault.File{Generation: fmt.Sprint(time.Now().UnixNano()), Rules: rules}
	if err := fault.Write(root, f); err != nil {
		t.Fatal(err)
	}
	if _, err := fault.Load(root); err != nil {
		t.Fatal(err)
	}
}

// Hits returns how often the i-th rule of the last Order has applied.
func Hits(t testing.TB, root string, i int) int {
	t.Helper()
	set, err := fault.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	n, err := set.Hits(i)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Calls returns the arguments, from the subcommand on, of all calls under root
// so far, the oldest first.
func Calls(t testing.TB, root string) [][]string {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "calls.jsonl"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var calls [][]string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c struct {
			Args []string `json:"args"`
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c.Args)
	}
	return calls
}

// Image makes a checkpoint from which the fake runtime restores any container.
func Image(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	WriteJSON(t, filepath.Join(dir, "fakeoci-checkpoint.json"), nil)
	return dir
}

// Spec is a spec that the fake runtime can run, and that a real one would need
// more for. The program is looked up on the host.
func Spec(args ...string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: Process(args...),
		Linux:   &specs.Linux{},
	}
}

// Process is a process for Spec or for an exec.
func Process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin"}}
}

// WriteBundle makes dir a bundle with an empty rootfs.
func WriteBundle(t testing.TB, dir string, spec *specs.Spec) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	WriteJSON(t, filepath.Join(dir, "config.json"), spec)
}

// ReadSpec reads the spec of a bundle.
func ReadSpec(t testing.TB, bundle string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	spec := &specs.Spec{}
	if err == nil {
		err = json.Unmarshal(data, spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// WriteJSON writes a value to a file.
func WriteJSON(t testing.TB, path string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
