package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/transfer"
)

// TestProgressLines tells each step once where nobody looks at a terminal.
func TestProgressLines(t *testing.T) {
	events := []transfer.Progress{
		{Event: "resolving"},
		{Event: "waiting", Name: "layer-sha256:0123456789abcdef", Total: 100},
		{Event: "downloading", Name: "layer-sha256:0123456789abcdef", Progress: 1, Total: 100},
		{Event: "downloading", Name: "layer-sha256:0123456789abcdef", Progress: 2, Total: 100},
		{Event: "complete\x1b[2J", Name: "layer-sha256:0123456789abcdef", Progress: 100, Total: 100},
	}
	for mode, want := range map[progressMode][2]string{
		progressAuto:  {"r.test/a:1\n", "resolving\nwaiting layer-sha256:0123456789abcdef\ndownloading layer-sha256:0123456789abcdef\ncomplete [2J layer-sha256:0123456789abcdef\n"},
		progressQuiet: {"r.test/a:1\n", ""},
	} {
		out, errs := progressOf(t, mode, events)
		if out != want[0] || errs != want[1] {
			t.Errorf("mode %d: %q and %q", mode, out, errs)
		}
	}
	out, errs := progressOf(t, progressJSON, events)
	var rows []progressRow
	for line := range strings.Lines(out) {
		var row progressRow
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	if errs != "" || len(rows) < 5 || rows[1].Total != 100 || rows[len(rows)-1].Event != "done" || rows[len(rows)-1].Name != "r.test/a:1" {
		t.Errorf("%+v, %q", rows, errs)
	}
	if line := barLine(events[3]); !strings.Contains(line, "layer-0123456789ab…") || !strings.Contains(line, "2 B / 100 B") {
		t.Errorf("%q", line)
	}
}

func progressOf(t *testing.T, mode progressMode, events []transfer.Progress) (stdout, stderr string) {
	t.Helper()
	var files [2]*os.File
	for i, name := range []string{"out", "err"} {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	app := &App{Stdout: files[0], Stderr: files[1]}
	v := app.progress(mode)
	for _, e := range events {
		v.update(e)
	}
	v.end()
	app.done(mode, "r.test/a:1")
	out, err := os.ReadFile(files[0].Name())
	errs, err2 := os.ReadFile(files[1].Name())
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return string(out), string(errs)
}
