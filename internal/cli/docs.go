package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/urfave/cli/v3"
)

// docsCommand writes what is generated from the command tree: the page of all
// verbs, or a man page for each.
func (a *App) docsCommand() *cli.Command {
	return &cli.Command{
		Name: "docs", Hidden: true, Usage: "print docs/cli.md, or write the man pages",
		Flags: []cli.Flag{str("man", "write man pages to a `DIR`")},
		Action: func(_ context.Context, cmd *cli.Command) error {
			pages := pagesOf(a.root(), "berth")
			dir := cmd.String("man")
			if dir == "" {
				_, err := a.Stdout.Write(markdown(pages))
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for _, p := range pages {
				name := strings.ReplaceAll(p.name, " ", "-") + ".1"
				if err := os.WriteFile(filepath.Join(dir, name), p.man(), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// docPage is one command of the tree.
type docPage struct {
	name, usage, synopsis string
	// text are paragraphs; code says which of them are commands.
	text []string
	code []bool
	opts []docOption
}

type docOption struct{ names, help string }

func pagesOf(cmd *cli.Command, name string) []docPage {
	p := docPage{name: name, usage: cmd.Usage, synopsis: name + " [OPTIONS]"}
	switch {
	case len(cmd.Commands) > 0:
		p.synopsis += " VERB …"
	case cmd.ArgsUsage != "":
		p.synopsis += " " + cmd.ArgsUsage
	}
	p.paragraphs(cmd.Description)
	for _, f := range cmd.Flags {
		if f, ok := f.(cli.DocGenerationFlag); ok {
			p.opts = append(p.opts, optionOf(f))
		}
	}
	pages := []docPage{p}
	for _, c := range cmd.Commands {
		if !c.Hidden {
			pages = append(pages, pagesOf(c, name+" "+c.Name)...)
		}
	}
	return pages
}

// paragraphs takes a description apart: what is indented are commands.
func (p *docPage) paragraphs(description string) {
	for line := range strings.Lines(description) {
		line = strings.TrimRight(line, "\n")
		code, last := strings.HasPrefix(line, "  "), len(p.text)-1
		switch {
		case line == "":
			p.text, p.code = append(p.text, ""), append(p.code, false)
		case last >= 0 && p.code[last] == code && p.text[last] != "":
			p.text[last] += "\n" + strings.TrimSpace(line)
		default:
			p.text, p.code = append(p.text, strings.TrimSpace(line)), append(p.code, code)
		}
	}
}

var placeholder = regexp.MustCompile("`([^`]*)`")

func optionOf(f cli.DocGenerationFlag) docOption {
	flag := f.(cli.Flag)
	value := ""
	if f.TakesValue() {
		value = " VALUE"
		if m := placeholder.FindStringSubmatch(f.GetUsage()); m != nil {
			value = " " + m[1]
		}
	}
	var names []string
	for _, n := range flag.Names() {
		if len(n) == 1 {
			names = append(names, "-"+n)
		} else {
			names = append(names, "--"+n+value)
		}
	}
	o := docOption{names: strings.Join(names, ", "), help: placeholder.ReplaceAllString(f.GetUsage(), "$1")}
	d := strings.Trim(f.GetValue(), `"`)
	if d != "" && d != "false" && d != "0" && d != "0s" && d != "[]" && !strings.Contains(o.help, "default") {
		o.help += " (default: " + d + ")"
	}
	if env := f.GetEnvVars(); len(env) > 0 {
		o.help += " [$" + strings.Join(env, ", $") + "]"
	}
	return o
}

// markdown is docs/cli.md.
func markdown(pages []docPage) []byte {
	var b bytes.Buffer
	fmt.Fprint(&b, "# The command `berth`\n\nMade from the command itself by `make docs`. What differs from `ctr` is in [known-differences.md](known-differences.md).\nAn option without a default changes nothing when it is left out.\n\n")
	for _, p := range pages[1:] {
		if strings.Count(p.name, " ") == 1 {
			fmt.Fprintf(&b, "- [`%s`](#%s): %s\n", p.name, strings.ReplaceAll(p.name, " ", "-"), p.usage)
		}
	}
	for _, p := range pages {
		fmt.Fprintf(&b, "\n## `%s`\n\n%s.\n\n```\n%s\n```\n", p.name, strings.ToUpper(p.usage[:1])+p.usage[1:], p.synopsis)
		for i, text := range p.text {
			switch {
			case p.code[i]:
				fmt.Fprintf(&b, "\n```sh\n%s\n```\n", text)
			case text != "":
				fmt.Fprintf(&b, "\n%s\n", strings.NewReplacer("<", `\<`, "*", `\*`).Replace(text))
			}
		}
		if len(p.opts) == 0 {
			continue
		}
		fmt.Fprint(&b, "\n| option | |\n|---|---|\n")
		for _, o := range p.opts {
			fmt.Fprintf(&b, "| `%s` | %s |\n", o.names, strings.NewReplacer("|", `\|`, "<", `\<`, "*", `\*`).Replace(o.help))
		}
	}
	return b.Bytes()
}

// man is the page in roff.
func (p *docPage) man() []byte {
	var b bytes.Buffer
	name := strings.ReplaceAll(p.name, " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 \"\" Berth \"User Commands\"\n.SH NAME\n%s \\- %s\n.SH SYNOPSIS\n%s\n", roff(strings.ToUpper(name)), roff(name), roff(p.usage), roff(p.synopsis))
	if len(p.text) > 0 {
		fmt.Fprint(&b, ".SH DESCRIPTION\n")
	}
	for i, text := range p.text {
		if p.code[i] {
			fmt.Fprintf(&b, ".RS\n.nf\n%s\n.fi\n.RE\n", roff(text))
		} else {
			fmt.Fprintf(&b, ".PP\n%s\n", roff(text))
		}
	}
	if len(p.opts) > 0 {
		fmt.Fprint(&b, ".SH OPTIONS\n")
	}
	for _, o := range p.opts {
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", roff(o.names), roff(o.help))
	}
	if p.name != "berth" {
		fmt.Fprint(&b, ".SH SEE ALSO\n.BR berth (1)\n")
	}
	return b.Bytes()
}

// roff keeps a text from being taken for requests and escapes.
func roff(text string) string {
	lines := strings.Split(strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
