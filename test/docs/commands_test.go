package docs

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berthd/berth/internal/cli"
)

// TestCommands looks up each command of our own that a page shows.
func TestCommands(t *testing.T) {
	targets := makeTargets(t)
	daemon := daemonNames(t)
	helps := map[string]help{}
	seen := map[string]int{}
	for _, p := range pages(t) {
		lines := append(p.spans(), p.code...)
		for _, line := range lines {
			for _, words := range commands(line) {
				program := filepath.Base(words[0])
				switch program {
				case "make":
					checkMake(t, p.name, words[1:], targets)
				case "berth":
					checkBerth(t, p.name, words[1:], helps)
				case "berthd":
					checkDaemon(t, p.name, words[1:], daemon)
				default:
					continue
				}
				seen[program]++
			}
		}
	}
	if seen["make"] < 10 || seen["berth"] < 10 || seen["berthd"] < 3 {
		t.Errorf("only these commands were found: %v", seen)
	}
}

// commands splits a line into the commands that a shell would run. The prompt
// and what runs a command for another are left out, comments too.
func commands(line string) [][]string {
	line = strings.TrimPrefix(strings.TrimSpace(line), "$ ")
	var list [][]string
	var words []string
	var word strings.Builder
	var quote rune
	started := false
	endWord := func() {
		if started {
			words = append(words, word.String())
		}
		word.Reset()
		started = false
	}
	endCommand := func() {
		endWord()
		for len(words) > 0 && (words[0] == "sudo" || assignment.MatchString(words[0])) {
			words = words[1:]
		}
		if len(words) > 0 {
			list = append(list, words)
		}
		words = nil
	}
scan:
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, started = r, true
		case r == ' ' || r == '\t':
			endWord()
		case strings.ContainsRune(";&|()", r):
			endCommand()
		case r == '#' && !started:
			break scan
		default:
			started = true
			word.WriteRune(r)
		}
	}
	endCommand()
	return list
}

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func TestSplitCommands(t *testing.T) {
	got := commands(`$ A=1 sudo berth run x sh -c 'a; b | c'; echo $? && make "t u" # make v`)
	want := [][]string{{"berth", "run", "x", "sh", "-c", "a; b | c"}, {"echo", "$?"}, {"make", "t u"}}
	if !slices.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Errorf("commands are %q, want %q", got, want)
	}
}

func makeTargets(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):(?:[^=]|$)`).FindAllStringSubmatch(string(data), -1) {
		targets[m[1]] = true
	}
	return targets
}

func checkMake(t *testing.T, page string, args []string, targets map[string]bool) {
	t.Helper()
	for _, a := range args {
		if !assignment.MatchString(a) && !strings.HasPrefix(a, "-") && !targets[a] {
			t.Errorf("%s: make %s: the Makefile has no such target", page, a)
		}
	}
}

// help is what a command says of itself.
type help struct {
	text string
	// flags say whether each flag, with its dashes, takes a value.
	flags map[string]bool
}

var optionName = regexp.MustCompile(`(--?[A-Za-z][a-z-]*)( [^,\[\]]+)?`)

// output runs berth itself.
func output(t *testing.T, args ...string) (text string, code int) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	app := &cli.App{Stdin: os.Stdin, Stdout: out, Stderr: out}
	code = app.Run(context.Background(), append([]string{"berth"}, args...))
	data, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data), code
}

// TestCLIPage wants docs/cli.md as the commands are.
func TestCLIPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	if want, code := output(t, "docs"); code != 0 || string(page) != want {
		t.Errorf("docs/cli.md is not what the verbs and options of berth are (make docs writes it)")
	}
}

// helpOf asks berth itself. A verb that is not there has no flags.
func helpOf(t *testing.T, args ...string) help {
	t.Helper()
	text, code := output(t, slices.Concat(args, []string{"--help"})...)
	h := help{text: text, flags: map[string]bool{}}
	if code != 0 {
		return h
	}
	for line := range strings.Lines(h.text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "-") {
			continue
		}
		names, _, _ := strings.Cut(line, "  ")
		for _, m := range optionName.FindAllStringSubmatch(names, -1) {
			h.flags[m[1]] = m[2] != ""
		}
	}
	return h
}

func checkBerth(t *testing.T, page string, args []string, helps map[string]help) {
	t.Helper()
	rest := checkFlags(t, page, "berth", args, ask(t, helps))
	if len(rest) == 0 || rest[0] == "completion" {
		return
	}
	verb := rest[0]
	h := ask(t, helps, verb)
	if !strings.HasPrefix(h.text, "NAME:\n   berth "+verb+" ") {
		t.Errorf("%s: berth has no verb %q", page, verb)
		return
	}
	checkFlags(t, page, "berth "+verb, rest[1:], h)
}

func ask(t *testing.T, helps map[string]help, args ...string) help {
	t.Helper()
	key := strings.Join(args, " ")
	if _, asked := helps[key]; !asked {
		helps[key] = helpOf(t, args...)
	}
	return helps[key]
}

// checkFlags checks the flags before the first argument, and returns what
// begins with that.
func checkFlags(t *testing.T, page, command string, args []string, h help) []string {
	t.Helper()
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		flag, _, given := strings.Cut(args[0], "=")
		names := []string{flag}
		if !strings.HasPrefix(flag, "--") {
			names = nil // -it is -i -t
			for _, r := range flag[1:] {
				names = append(names, "-"+string(r))
			}
		}
		value := false
		for _, name := range names {
			takes, known := h.flags[name]
			if !known {
				t.Errorf("%s: %s has no flag %s", page, command, name)
			}
			value = takes
		}
		args = args[1:]
		if value && !given && len(args) > 0 {
			args = args[1:]
		}
	}
	return args
}

// names are the commands and flags of berthd.
type names struct{ commands, flags map[string]bool }

// daemonNames reads them from the source: berthd is a program of its own, and
// to build it for this would take minutes on a new machine.
func daemonNames(t *testing.T) names {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, filepath.Join(root, "cmd/berthd/command.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := names{commands: map[string]bool{}, flags: map[string]bool{"help": true, "h": true, "version": true, "v": true}}
	ast.Inspect(f, func(node ast.Node) bool {
		lit, ok := node.(*ast.CompositeLit)
		if !ok {
			return true
		}
		into := n.commands
		if sel, ok := lit.Type.(*ast.SelectorExpr); ok && strings.HasSuffix(sel.Sel.Name, "Flag") {
			into = n.flags
		}
		for _, e := range lit.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				addNames(kv, into)
			}
		}
		return true
	})
	return n
}

// addNames takes the strings of the members Name and Aliases.
func addNames(kv *ast.KeyValueExpr, into map[string]bool) {
	key, ok := kv.Key.(*ast.Ident)
	if !ok || key.Name != "Name" && key.Name != "Aliases" {
		return
	}
	ast.Inspect(kv.Value, func(node ast.Node) bool {
		if lit, ok := node.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if name, err := strconv.Unquote(lit.Value); err == nil {
				into[name] = true
			}
		}
		return true
	})
}

func checkDaemon(t *testing.T, page string, args []string, n names) {
	t.Helper()
	for i := 0; i < len(args); i++ {
		flag, isFlag := strings.CutPrefix(args[i], "-")
		if !isFlag {
			if !n.commands[args[i]] {
				t.Errorf("%s: berthd has no command %q", page, args[i])
			}
			continue
		}
		flag, _, given := strings.Cut(strings.TrimPrefix(flag, "-"), "=")
		switch {
		case !n.flags[flag]:
			t.Errorf("%s: berthd has no flag %q", page, args[i])
		case !given && flag != "help" && flag != "h" && flag != "version" && flag != "v":
			i++ // all others take a value
		}
	}
}
