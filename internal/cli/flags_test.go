package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
)

// TestCtrFlags has every option of containerd's own tool under its name, of its
// kind, and those that docker's users type.
func TestCtrFlags(t *testing.T) {
	app := &App{}
	have := map[string]string{}
	for _, f := range app.runCommand().Flags {
		kind := "value"
		switch f.(type) {
		case *cli.BoolFlag:
			kind = "bool"
		case *cli.StringSliceFlag:
			kind = "list"
		}
		for _, name := range f.Names() {
			have[name] = kind
		}
	}
	data, err := os.ReadFile("testdata/ctr-run-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if line[0] == '#' {
			continue
		}
		n++
		// One file of variables there, any number here.
		if kind := have[f[0]]; kind != f[1] && f[0] != "env-file" {
			t.Errorf("--%s is %q, want %s", f[0], kind, f[1])
		}
		if len(f) > 2 && have[f[2]] == "" {
			t.Errorf("--%s is not also -%s", f[0], f[2])
		}
	}
	if n != 60 {
		t.Errorf("the table has %d options, want 60", n)
	}
	for _, name := range strings.Fields(`i t e v w u p d name net network dns add-host memory pids-limit ulimit shm-size
		tmpfs entrypoint restart stop-signal stop-timeout init read-only security-opt cidfile volatile log-driver log-opt`) {
		if have[name] == "" {
			t.Errorf("run has no --%s", name)
		}
	}
}

// TestOptionEffects names, for each option of run, the test that shows its
// effect, and wants the option in the source of that test.
func TestOptionEffects(t *testing.T) {
	sources := map[string]string{} // of functions, by name
	files, err := filepath.Glob("../../test/integration/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				sources[fn.Name.Name] = string(text[fn.Pos()-file.FileStart : fn.End()-file.FileStart])
			}
		}
	}
	table, err := os.ReadFile("testdata/option-effects.txt")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); f[0] != "#" {
			tests[f[0]] = f[1]
		}
	}
	for _, f := range (&App{}).runCommand().Flags {
		names := f.Names()
		source := sources[tests[names[0]]]
		delete(tests, names[0])
		var forms []string
		for _, n := range names {
			if len(n) == 1 {
				n = "[a-z]*" + n // it may stand among others, as in -it
			} else {
				n = "-" + regexp.QuoteMeta(n)
			}
			forms = append(forms, n)
		}
		used := regexp.MustCompile(`["\s]-(` + strings.Join(forms, "|") + `)["\s=]`)
		if !used.MatchString(source) {
			t.Errorf("--%s: no test of its effect, or that does not use it (testdata/option-effects.txt)", names[0])
		}
	}
	for name := range tests {
		t.Errorf("--%s is in the table and no option of run", name)
	}
}
