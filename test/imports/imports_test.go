// Package imports holds the tree to its design: which package may import
// which, and a few things that no package may do. It parses the sources;
// `go list` would answer from a cache that can be stale.
package imports

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/berthd/berth/"

// allowed lists the packages of our own that each package may import. A
// package that is not listed fails the test: say where it belongs.
var allowed = map[string][]string{
	"task": {},

	// Of use without the rest too.
	"speccheck": {},

	// One thing each, on the vocabulary alone.
	"internal/bundle":     {"task"},
	"internal/cgroup":     {"task"},
	"internal/events":     {},
	"internal/logfile":    {},
	"internal/mount":      {"task"},
	"internal/ociruntime": {"task", "speccheck", "internal/reap"},
	"internal/reap":       {},
	"internal/stdio":      {"task", "internal/logfile"},
	"internal/storage":    {},
	"internal/version":    {},

	// Asked by both sides before a runtime is.
	"internal/admit": {"speccheck", "internal/ociruntime"},

	// The shim's side.
	"internal/guard": {"internal/reap"},
	"internal/container": {
		"task", "internal/cgroup", "internal/mount", "internal/ociruntime", "internal/reap", "internal/stdio",
	},
	"internal/shim": {
		"task", "speccheck", "internal/admit", "internal/cgroup", "internal/container", "internal/guard", "internal/mount", "internal/ociruntime",
		"internal/reap", "internal/stdio",
	},
	"engine/shim":                  {"internal/shim", "internal/version"},
	"cmd/containerd-shim-berth-v2": {"engine/shim"},

	// The daemon's side. The API sees the runtime only as a task.Runner.
	"internal/supervisor": {"task", "speccheck", "internal/admit", "internal/bundle"},
	"internal/api":        {"task", "internal/storage"},
	"internal/restart":    {},
	"engine": {
		"task", "speccheck", "internal/api", "internal/events", "internal/restart", "internal/storage", "internal/supervisor", "internal/version",
	},
	"cmd/berthd":   {"engine", "speccheck", "internal/version"},
	"examples/run": {"engine"},

	// A module of its own: BuildKit's steps on any containerd client.
	"executor":                     {},
	"executor/worker":              {"executor"},
	"executor/cmd/berth-buildkitd": {"engine", "engine/shim", "executor", "executor/worker"},
	"executor/examples/build":      {"engine", "engine/shim", "executor", "executor/worker"},

	// The command talks to a daemon over its API and to nothing else.
	"internal/cli/attach":    {},
	"internal/cli/autostart": {},
	"internal/cli/copy":      {},
	"internal/cli/network":   {},
	"internal/cli/runspec":   {},
	"internal/cli": {
		"speccheck", "internal/admit",
		"internal/cli/attach", "internal/cli/autostart", "internal/cli/copy", "internal/cli/network", "internal/cli/runspec",
		"internal/logfile", "internal/version",
	},
	"cmd/berth": {"internal/cli"},
}

// forTests are packages that only tests and test programs import.
var forTests = []string{"task/tasktest", "internal/faketask", "internal/testimage", "test/", "bench"}

// banned are modules that a package must stay free of.
var banned = map[string][]string{
	// The vocabulary and the heart know no RPC.
	"task":                {"google.golang.org/", "github.com/containerd/containerd", "github.com/containerd/ttrpc"},
	"internal/container":  {"google.golang.org/", "github.com/containerd/containerd", "github.com/containerd/ttrpc"},
	"internal/reap":       {"google.golang.org/", "github.com/containerd/"},
	"internal/ociruntime": {"google.golang.org/", "github.com/containerd/containerd", "github.com/containerd/ttrpc"},
	"internal/stdio":      {"google.golang.org/", "github.com/containerd/containerd", "github.com/containerd/ttrpc"},
	"internal/guard":      {"google.golang.org/", "github.com/containerd/"},
}

// everywhere are imports that stand for what Berth replaces.
var everywhere = []string{
	"github.com/containerd/containerd/v2/core/runtime/v2",
	"github.com/containerd/plugin/registry",
}

type source struct {
	path    string // of the file, from the module's root
	pkg     string // of the package, from the module's root
	file    *ast.File
	imports []string
}

// load parses the product's sources and those of test programs.
func load(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var list []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"out", "bin", "testdata"}, d.Name())) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		s := source{path: rel, pkg: filepath.ToSlash(filepath.Dir(rel)), file: f}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, name)
		}
		list = append(list, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 50 {
		t.Fatalf("only %d files found", len(list))
	}
	return list
}

func hasPrefix(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

func TestImports(t *testing.T) {
	for _, s := range load(t) {
		if hasPrefix(s.pkg, forTests) {
			continue
		}
		may, listed := allowed[s.pkg]
		if !listed {
			t.Errorf("%s: package %s has no place in the table of this test", s.path, s.pkg)
			continue
		}
		for _, name := range s.imports {
			own, ours := strings.CutPrefix(name, module)
			if ours && !slices.Contains(may, own) {
				t.Errorf("%s: %s must not import %s", s.path, s.pkg, own)
			}
			if hasPrefix(name, banned[s.pkg]) {
				t.Errorf("%s: %s must stay free of %s", s.path, s.pkg, name)
			}
			if slices.Contains(everywhere, name) {
				t.Errorf("%s: %s is what Berth replaces", s.path, name)
			}
		}
	}
}

// Nothing runs before main: everything is wired by hand, in sight.
func TestNoInit(t *testing.T) {
	for _, s := range load(t) {
		for _, d := range s.file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init()", s.path)
			}
		}
	}
}

// A package is named after what it is about.
func TestPackageNames(t *testing.T) {
	for _, s := range load(t) {
		if slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, s.file.Name.Name) {
			t.Errorf("%s: package %s", s.path, s.file.Name.Name)
		}
	}
}
