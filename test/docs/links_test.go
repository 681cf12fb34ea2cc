package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	heading = regexp.MustCompile(`^#{1,6} +(.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinks follows every relative link, up to the heading that it names.
func TestLinks(t *testing.T) {
	found := 0
	anchors := map[string]map[string]bool{}
	list := pages(t)
	for _, p := range list {
		anchors[p.name] = p.anchors()
	}
	for _, p := range list {
		for _, line := range p.text {
			for _, m := range link.FindAllStringSubmatch(span.ReplaceAllString(line, ""), -1) {
				target := m[1]
				if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
					continue
				}
				found++
				path, anchor, named := strings.Cut(target, "#")
				name := p.name
				if path != "" {
					name = filepath.Join(filepath.Dir(p.name), path)
				}
				if !filepath.IsLocal(name) {
					t.Errorf("%s: %s leads out of the repository", p.name, target)
					continue
				}
				if _, err := os.Stat(filepath.Join(root, name)); err != nil {
					t.Errorf("%s: %s: %v", p.name, target, err)
				}
				if named && !anchors[name][anchor] {
					t.Errorf("%s: %s: there is no such heading", p.name, target)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d links found", found)
	}
}

// anchors are the names of the page's headings, as forges make them.
func (p page) anchors() map[string]bool {
	names := map[string]bool{}
	for _, line := range p.text {
		if m := heading.FindStringSubmatch(line); m != nil {
			name := dropped.ReplaceAllString(strings.ToLower(m[1]), "")
			names[strings.ReplaceAll(strings.TrimSpace(name), " ", "-")] = true
		}
	}
	return names
}

func TestParse(t *testing.T) {
	p := parse("x.md", "# A *b*, `c`\ntext `make x`\n```sh\n[not](a/link)\n```\n```\ndrawing\n```\n```console\n$ make z\nout\n```\n\n    make y\n- item\n    more text\n")
	if want := []string{"[not](a/link)", "$ make z", "make y"}; !slices.Equal(p.code, want) {
		t.Errorf("code is %q", p.code)
	}
	if len(p.text) != 5 || !p.anchors()["a-b-c"] {
		t.Errorf("text is %q, headings %v", p.text, p.anchors())
	}
	if s := p.spans(); len(s) != 2 || s[1] != "make x" {
		t.Errorf("spans are %q", s)
	}
}
