package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// TestBerthLogs reads the log of a container in the background: streams apart,
// with times, bounded by times and lines.
func TestBerthLogs(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("logs")
	gate := newGate(t)
	d.MustBerth(t, "run", "-d", "--name", id, "-v", gate.dir+":/gate", harness.Image,
		"sh", "-c", "echo one; echo two; echo oops >&2; printf pa; "+gate.wait()+"; echo rt; exit 3")
	logs := func(flags ...string) harness.Result {
		t.Helper()
		return d.Berth(t, append(append([]string{"logs"}, flags...), id)...)
	}
	harness.Await(t, 30*time.Second, "the first lines", func() bool {
		r := logs()
		return r.Stdout == "one\ntwo\npa" && r.Stderr == "oops\n"
	})
	between := time.Now()
	gate.open(t)
	d.MustBerth(t, "wait", id)
	harness.Await(t, 30*time.Second, "the last line", func() bool { return strings.HasSuffix(logs().Stdout, "part\n") })

	stamp := func(at time.Time) string { return at.UTC().Format(time.RFC3339Nano) }
	for _, test := range []struct {
		flags          []string
		stdout, stderr string
	}{
		{nil, "one\ntwo\npart\n", "oops\n"},
		{[]string{"--tail", "0"}, "", ""},
		{[]string{"-n", "1"}, "part\n", ""},
		{[]string{"-f", "-n", "1"}, "part\n", ""},
		{[]string{"--since", stamp(between)}, "rt\n", ""},
		{[]string{"--until", stamp(between)}, "one\ntwo\npa", "oops\n"},
		{[]string{"--since", "1h"}, "one\ntwo\npart\n", "oops\n"},
		{[]string{"--until", "1h"}, "", ""},
	} {
		if r := logs(test.flags...); r.Stdout != test.stdout || r.Stderr != test.stderr || r.Code != 0 {
			t.Errorf("logs %q: %s\nwant %q and %q", test.flags, r, test.stdout, test.stderr)
		}
	}
	lines := strings.Split(strings.TrimSuffix(logs("-t").Stdout, "\n"), "\n")
	if len(lines) != 3 {
		t.Errorf("%q", lines)
	}
	for i, line := range lines {
		when, text, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, when)
		if want := []string{"one", "two", "part"}[i]; err != nil || text != want || time.Since(at) > time.Hour || time.Since(at) < 0 {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
	for _, flags := range [][]string{{"--since", "soon"}, {"--until", "-"}, {"-f", "--until", "1h"}} {
		if r := logs(flags...); r.Code != 1 {
			t.Errorf("logs %q: %s", flags, r)
		}
	}
	d.MustBerth(t, "rm", id)
}

// TestBerthLogsRotation writes more than a file of the log holds, and reads all
// of it, while it is written and afterwards. rm removes every file.
func TestBerthLogsRotation(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("rotation")
	gate := newGate(t)
	const n = 150000
	d.MustBerth(t, "run", "-d", "--name", id, "-v", gate.dir+":/gate", harness.Image, "sh", "-c", gate.wait()+fmt.Sprintf("; seq %d", n))
	path := strings.TrimSpace(d.MustBerth(t, "logs", "--path", id))
	follow := d.Spawn(t, d.Programs.Berth, "logs", "-f", id)
	gate.open(t)
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	want := b.String()
	if r := follow.Wait(t); r.Stdout != want || r.Code != 0 {
		t.Errorf("logs -f: %d bytes, want %d; code %d, stderr %q", len(r.Stdout), len(want), r.Code, r.Stderr)
	}
	if got := d.MustBerth(t, "logs", id); got != want {
		t.Errorf("logs: %d bytes, want %d", len(got), len(want))
	}
	if got, want := d.MustBerth(t, "logs", "--tail", "120000", id), want[strings.Index(want, "\n30001\n")+1:]; got != want {
		t.Errorf("logs --tail: %d bytes, want %d", len(got), len(want))
	}
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Errorf("the log was not rotated: %v", err)
	}
	d.MustBerth(t, "rm", id)
	for _, name := range []string{path, path + ".1"} {
		if _, err := os.Stat(name); !os.IsNotExist(err) {
			t.Errorf("%s outlives its container: %v", name, err)
		}
	}
}
