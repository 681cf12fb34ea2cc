package speccheck

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/speccheck.md")

// The tables in the docs are those of the code.
func TestDocs(t *testing.T) {
	const path = "../docs/speccheck.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for name, table := range map[string]string{"classes": classDocs(), "capabilities": capabilityDocs()} {
		before, rest, ok := strings.Cut(text, "<!-- "+name+" -->\n")
		_, after, ok2 := strings.Cut(rest, "<!-- end -->")
		if !ok || !ok2 {
			t.Fatalf("%s has no place for %s", path, name)
		}
		text = before + "<!-- " + name + " -->\n" + table + "<!-- end -->" + after
	}
	if text == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the code says: go test ./speccheck -run TestDocs -update", path)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func classDocs() string {
	var b strings.Builder
	b.WriteString("| class | not supported | not known | |\n|---|---|---|---|\n")
	for _, i := range classTable {
		fmt.Fprintf(&b, "| <a id=\"%s\"></a>`%s` | %v | %v | %s |\n", i.class, i.class, i.unsupported, i.unknown, i.what)
	}
	return b.String()
}

func capabilityDocs() string {
	uses := map[string][]string{}
	for _, r := range rules() {
		for _, need := range []string{r.need, r.exec, r.update} {
			if need != "" {
				uses[need] = append(uses[need], "`"+r.path+"`")
			}
		}
	}
	var b strings.Builder
	b.WriteString("| | members | spec | runc | crun | youki | runsc | kata |\n|---|---|---|---|---|---|---|---|\n")
	for _, k := range capabilityTable {
		cells := []string{k.what, strings.Join(uses[k.name], ", "), k.spec}
		for _, runtime := range []string{"runc", "crun", "youki", "runsc", "kata"} {
			cells = append(cells, strings.ReplaceAll(k.since(runtime), never, "-"))
		}
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	return b.String()
}
