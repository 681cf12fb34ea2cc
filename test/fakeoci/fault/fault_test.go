package fault_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berthd/berth/test/fakeoci/fault"
)

func load(t *testing.T, dir string, rules ...fault.Rule) *fault.Set {
	t.Helper()
	if err := fault.Write(dir, fault.File{Generation: t.Name(), Rules: rules}); err != nil {
		t.Fatal(err)
	}
	s, err := fault.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTake(t *testing.T) {
	s := load(t, t.TempDir(),
		fault.Rule{Op: "start", ID: "web*", Action: fault.Crash},
		fault.Rule{Op: "create", Action: fault.NoPid},
		fault.Rule{Op: "create", At: fault.After, Action: fault.Hang},
	)
	for _, f := range []struct {
		op, id string
		at     fault.Point
		want   fault.Action
	}{
		{"start", "web1", fault.Before, fault.Crash},
		{"start", "web1", fault.After, ""},
		{"start", "db", fault.Before, ""},
		{"kill", "web1", fault.Before, ""},
		{"create", "any", fault.Before, ""},
		{"create", "any", fault.After, fault.Hang},
	} {
		got, ok, err := s.Take(f.op, f.id, f.at)
		if err != nil || ok != (f.want != "") || got.Action != f.want {
			t.Errorf("%s of %s, %s: %q, %v", f.op, f.id, f.at, got.Action, err)
		}
	}
	if got, ok, err := s.TakePid("create", "any"); err != nil || !ok || got.Action != fault.NoPid {
		t.Errorf("pid file: %q, %v", got.Action, err)
	}
}

// A limited rule applies exactly that often, whoever comes at the same time, and anew
// after a new order.
func TestTimes(t *testing.T) {
	dir := t.TempDir()
	for _, generation := range []string{"one", "two"} {
		f := fault.File{Generation: generation, Rules: []fault.Rule{{Op: "kill", Action: fault.Exit, Times: 12}}}
		if err := fault.Write(dir, f); err != nil {
			t.Fatal(err)
		}
		var taken atomic.Int64
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				s, err := fault.Load(dir)
				if err != nil {
					t.Error(err)
					return
				}
				_, ok, err := s.Take("kill", "x", fault.Before)
				if err != nil {
					t.Error(err)
				}
				if ok {
					taken.Add(1)
				}
			})
		}
		wg.Wait()
		s, err := fault.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if hits, err := s.Hits(0); err != nil || hits != 12 || taken.Load() != 12 {
			t.Errorf("order %s: taken %d times, %d hits, %v", generation, taken.Load(), hits, err)
		}
	}
}

func TestBadRules(t *testing.T) {
	for text, want := range map[string]string{
		`{`: "unexpected end",
		`{"rules":[{"op":"start","action":"explode"}]}`:               "unknown action",
		`{"rules":[{"op":"start","action":"hang","at":"sometimes"}]}`: "unknown point",
		`{"rules":[{"op":"start","action":"hang","at":"middle"}]}`:    "no pid file",
		`{"rules":[{"op":"kill","action":"no-pid"}]}`:                 "no pid file",
		`{"rules":[{"op":"kill","id":"[","action":"hang"}]}`:          "syntax error in pattern",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fault.FileName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := fault.Load(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
