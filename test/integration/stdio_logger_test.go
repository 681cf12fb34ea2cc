package integration

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// loggerProgram writes a logging program that stores stdout at the returned
// path, with .err for stderr and .pids for its process id.
func loggerProgram(t *testing.T, scheme, script string) (uri, to string) {
	t.Helper()
	path, to := filepath.Join(t.TempDir(), "logger"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	u := url.URL{Scheme: scheme, Path: path, RawQuery: "to=" + url.QueryEscape(to)}
	return u.String(), to
}

const storing = `echo $$ >>"$2.pids"
echo . >&5; exec 5>&-
cat <&3 >>"$2" & cat <&4 >>"$2.err" & wait`

func awaitFile(t *testing.T, path, want string) {
	t.Helper()
	var b []byte
	ok := harness.Poll(30*time.Second, func() bool {
		b, _ = os.ReadFile(path)
		return string(b) == want
	})
	if !ok {
		t.Errorf("%s has %d bytes, want %d", filepath.Base(path), len(b), len(want))
	}
}

// TestLogger has a logging program take the output, as nerdctl's clients do.
func TestLogger(t *testing.T) {
	for _, scheme := range []string{"binary", "binary-v2"} {
		t.Run(scheme, func(t *testing.T) {
			harness.Each(t, func(t *testing.T, d *harness.Daemon) {
				uri, to := loggerProgram(t, scheme, storing)
				id := d.ID("logged")
				d.MustCtr(t, "run", "--detach", "--log-uri", uri, harness.Image, id, "sh", "-c", "seq 20000; echo oops >&2; exit 42")
				if code := d.WaitTask(t, id)(); code != 42 {
					t.Errorf("exit code %d, want 42", code)
				}
				var want strings.Builder
				for i := range 20000 {
					fmt.Fprintln(&want, i+1)
				}
				awaitFile(t, to, want.String())
				awaitFile(t, to+".err", "oops\n")
				remove(t, d, id)
			})
		})
	}
}

// TestLoggerFails has a logger that ends at once. Not for stock containerd,
// which starts the container all the same.
func TestLoggerFails(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	uri, _ := loggerProgram(t, "binary", "echo cannot reach the index >&2; exit 9")
	r := d.Ctr(t, "run", "--detach", "--log-uri", uri, harness.Image, d.ID("bad"), "true")
	if r.Code == 0 || !strings.Contains(r.Stderr, "cannot reach the index") {
		t.Error(r)
	}
	d.MustCtr(t, "containers", "rm", d.ID("bad"))
}

// TestLoggerOutlivesShim kills the shim and the logger under a container that
// writes all the time. Not for stock containerd: its containers die with the shim.
func TestLoggerOutlivesShim(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	uri, to := loggerProgram(t, "binary-v2", storing)
	id := d.ID("logged")
	gate := newGate(t)
	d.MustCtr(t, "run", "--detach", "--log-uri", uri, "--mount", gate.mount(), harness.Image, id,
		"sh", "-c", "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; "+gate.wait()+"; echo last; exit 42")
	exit := d.WaitTask(t, id)
	awaitLines(t, to, 20)
	d.KillShim(t)
	awaitFile(t, to, numbered(300))
	harness.Await(t, 30*time.Second, "the next shim", func() bool { return len(d.Shims()) == 1 })
	if b, err := os.ReadFile(to + ".pids"); err != nil || strings.Count(string(b), "\n") != 1 {
		t.Errorf("loggers %q, %v: want one", b, err)
	}
	// The new shim sees the end of a logger that it did not start.
	b, err := os.ReadFile(to + ".pids")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil { // its session: the cats too
		t.Fatal(err)
	}
	awaitLines(t, to+".pids", 2)
	gate.open(t)
	if code := exit(); code != 42 {
		t.Errorf("exit code %d, want 42", code)
	}
	awaitFile(t, to, numbered(300)+"last\n")
	remove(t, d, id)
}

// TestLogOutlivesShim kills the shim under a container that writes to a log of
// JSON lines: every line is there, once or twice.
func TestLogOutlivesShim(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("json")
	d.MustBerth(t, "run", "-d", "--name", id, harness.Image,
		"sh", "-c", "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done")
	follow := d.Spawn(t, d.Programs.Berth, "logs", "-f", id)
	for _, line := range []string{"line 20\n", "line 150\n"} {
		follow.AwaitOutput(t, line)
		harness.Await(t, 30*time.Second, "shim", func() bool { return len(d.Shims()) == 1 })
		d.KillShim(t)
	}
	r := follow.Wait(t)
	next := 0
	for _, line := range strings.Split(strings.TrimSuffix(r.Stdout, "\n"), "\n") {
		n, err := strconv.Atoi(strings.TrimPrefix(line, "line "))
		if err != nil || n > next {
			t.Fatalf("%q after line %d", line, next-1)
		}
		next = max(next, n+1)
	}
	if next != 300 || r.Code != 0 {
		t.Errorf("%d lines of 300, code %d, stderr %q", next, r.Code, r.Stderr)
	}
	d.MustBerth(t, "rm", id)
}
