package integration

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// TestCLIProgress looks at the same transfers on a terminal, where each layer
// has a line that is drawn again and again, in a pipe, and as JSON.
func TestCLIProgress(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		img, err := testimage.New(uniqueImage(t, 3<<20))
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		hash, err := layers[len(layers)-1].Digest()
		if err != nil {
			t.Fatal(err)
		}
		// The registry holds the layer back until the test has seen it.
		var gate atomic.Pointer[chan struct{}]
		reg := testimage.NewRegistry(t, func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				moves := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, hash.String()) || strings.Contains(r.URL.Path, "/uploads/")
				if closed := gate.Load(); closed != nil && moves {
					select {
					case <-*closed:
					case <-r.Context().Done():
					}
				}
				next.ServeHTTP(w, r)
			})
		})
		ref, pushed := reg.Push("team/app:1", img), reg.Host+"/team/pushed:1"
		archive := filepath.Join(t.TempDir(), "out.tar")
		verbs := [][]string{{"pull", ref}, {"push", ref, pushed}, {"export", "-o", archive, ref}, {"import", archive}}
		for _, verb := range verbs {
			layer, again := "layer-"+hash.Hex[:12]+"… ", regexp.MustCompile(`\x1b\[[0-9]+A`)
			closed := make(chan struct{})
			gate.Store(&closed)
			term := d.SpawnTerminal(t, 100, 30, append([]string{d.Programs.Berth}, verb...)...)
			local := verb[0] == "export" || verb[0] == "import"
			if !local {
				term.AwaitOutput(t, layer)
			}
			close(closed)
			if code := term.Wait(t); code != 0 {
				t.Fatalf("%v on a terminal: %d, %q", verb, code, term.Output())
			}
			// The end of the output comes a little after the end of the program.
			shown := func() bool {
				out := term.Output()
				switch {
				case local:
					return strings.Contains(out, " MiB") && strings.Contains(out, "\x1b[K")
				case verb[0] == "pull": // the layer is drawn again
					return strings.Count(out, layer) >= 2 && again.MatchString(out)
				}
				return true
			}
			if !harness.Poll(30*time.Second, shown) {
				t.Errorf("%v on a terminal: no count of what was moved, or it is not drawn again: %q", verb, term.Output())
			}
		}
		d.MustBerth(t, "rmi", "--sync", ref)
		for _, verb := range verbs {
			r := d.Berth(t, verb...)
			if r.Code != 0 || strings.Contains(r.Stderr, "\x1b") || r.Stderr == "" {
				t.Errorf("%v in a pipe: %s", verb, r)
			}
		}
		d.MustBerth(t, "rmi", "--sync", ref)
		for _, verb := range verbs {
			r := d.Berth(t, append([]string{verb[0], "--json"}, verb[1:]...)...)
			var last struct{ Event, Name string }
			for line := range strings.Lines(r.Stdout) {
				if err := json.Unmarshal([]byte(line), &last); err != nil {
					t.Errorf("%v --json: %q: %v", verb, line, err)
				}
			}
			if r.Code != 0 || r.Stderr != "" || last.Event != "done" || last.Name != verb[len(verb)-1] && last.Name != ref {
				t.Errorf("%v --json: %s", verb, r)
			}
		}
		for _, verb := range verbs {
			if r := d.Berth(t, append([]string{verb[0], "-q"}, verb[1:]...)...); r.Code != 0 || r.Stderr != "" || strings.Count(r.Stdout, "\n") > 1 {
				t.Errorf("%v -q: %s", verb, r)
			}
		}
		d.MustBerth(t, "rmi", "--sync", ref)
	})
}
