// Package docs checks what the Markdown pages of the repository promise: that
// links lead to files, and that the commands in them exist.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the top of the repository.
const root = "../.."

// page is a Markdown file, taken apart into text and code.
type page struct {
	name string   // from the root
	text []string // lines outside of code blocks
	code []string // commands of code blocks
}

// pages reads every Markdown file of the repository.
func pages(t *testing.T) []page {
	t.Helper()
	var list []page
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == "bin" || name == "out" || strings.HasPrefix(name, ".")) && name != ".":
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".md":
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		list = append(list, parse(name, string(data)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 5 {
		t.Fatalf("only %d pages found", len(list))
	}
	return list
}

// parse tells commands from text. Commands are the lines between fences of the
// kind "sh", those after a "$" between fences of the kind "console", and what is
// indented by four blanks after an empty line or other code. Other fences hold
// drawings and files.
func parse(name, data string) page {
	p := page{name: name}
	fenced, indented, empty := false, false, true
	kind := ""
	for line := range strings.Lines(data) {
		line = strings.TrimRight(line, "\r\n")
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence:
			fenced, kind = !fenced, fence
		case fenced:
			if kind == "sh" || kind == "console" && strings.HasPrefix(line, "$ ") {
				p.code = append(p.code, line)
			}
		case strings.HasPrefix(line, "    ") && (empty || indented):
			indented = true
			p.code = append(p.code, strings.TrimSpace(line))
		default:
			indented = false
			p.text = append(p.text, line)
		}
		empty = strings.TrimSpace(line) == ""
	}
	return p
}

var span = regexp.MustCompile("`[^`]*`")

// spans are the pieces of code within the text.
func (p page) spans() []string {
	var list []string
	for _, line := range p.text {
		for _, s := range span.FindAllString(line, -1) {
			list = append(list, strings.Trim(s, "`"))
		}
	}
	return list
}
