package stdio

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/logfile"
	"github.com/berthd/berth/task"
)

func logConfig(t *testing.T) (Config, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "made", "log")
	uri := logfile.Config{Path: path}.URI()
	return Config{Stdio: task.Stdio{Stdout: uri, Stderr: uri}}, path
}

// logRecords reads all that a log has.
func logRecords(t *testing.T, path string) []logfile.Record {
	t.Helper()
	r, err := logfile.Read(path, logfile.Filter{Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var recs []logfile.Record
	for {
		rec, err := r.Next()
		if err == io.EOF {
			if r.Skipped() > 0 {
				t.Errorf("%d lines are no records", r.Skipped())
			}
			return recs
		}
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, rec)
	}
}

func logText(t *testing.T, path, stream string) string {
	t.Helper()
	var b strings.Builder
	for _, rec := range logRecords(t, path) {
		if rec.Stream == stream {
			b.WriteString(rec.Text)
		}
	}
	return b.String()
}

// lines is n bytes of numbered lines; the last one may be cut.
func lines(n int) string {
	var b strings.Builder
	pad := strings.Repeat(".", 100)
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d %s\n", i, pad)
	}
	return b.String()[:n]
}

func TestLogOfEverySizeArrives(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4096, 4097, 16383, 16384, 16385, 65535, 65536, 65537, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			checkLeaks(t)
			cfg, path := logConfig(t)
			s := open(t, cfg)
			c := start(t, s)
			want := lines(size)
			write(t, c.out, []byte(want))
			write(t, c.err, bytes.Repeat([]byte("x"), size))
			c.exit()
			mustClose(t, s)
			if got := logText(t, path, "stdout"); got != want {
				t.Errorf("stdout has %d bytes", len(got))
			}
			if got := logText(t, path, "stderr"); got != strings.Repeat("x", size) {
				t.Errorf("stderr has %d bytes", len(got))
			}
		})
	}
}

// TestLineIsOneRecord writes lines in pieces; a piece that stays alone
// becomes a record of its own.
func TestLineIsOneRecord(t *testing.T) {
	checkLeaks(t)
	cfg, path := logConfig(t)
	s := open(t, cfg)
	c := start(t, s)
	write(t, c.out, []byte("who are you? "))
	eventually(t, "the question is in the log", func() bool { return logText(t, path, "stdout") == "who are you? " })
	for range 50 {
		for _, piece := range []string{"a", "n", "swe", "r\n"} {
			write(t, c.out, []byte(piece))
		}
	}
	c.exit()
	mustClose(t, s)
	var parts int
	for _, rec := range logRecords(t, path) {
		if !strings.HasSuffix(rec.Text, "\n") {
			parts++
		}
		if since := time.Since(rec.Time); since < 0 || since > time.Hour {
			t.Errorf("time %v", rec.Time)
		}
	}
	if want := "who are you? " + strings.Repeat("answer\n", 50); logText(t, path, "stdout") != want || parts > 100 {
		t.Errorf("%d partial records: %q", parts, logText(t, path, "stdout"))
	}
}

// TestCrumbsDoNotBlock fills a pipe with writes that do not share a page: it is
// full with few bytes, none of them the end of a line.
func TestCrumbsDoNotBlock(t *testing.T) {
	checkLeaks(t)
	cfg, path := logConfig(t)
	s := open(t, cfg)
	c := start(t, s)
	flags, err := unix.FcntlInt(c.out.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(c.out.Fd(), unix.F_SETFL, flags|unix.O_DIRECT); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		write(t, c.out, []byte("é"))
	}
	c.exit()
	mustClose(t, s)
	if got := logText(t, path, "stdout"); got != strings.Repeat("é", 100) {
		t.Errorf("%q", got)
	}
}

// TestProcessesShareALog has two processes log to one path, with rotation; other
// options for it are refused.
func TestProcessesShareALog(t *testing.T) {
	checkLeaks(t)
	cfg, path := logConfig(t)
	uri := logfile.Config{Path: path, MaxSize: 20000, MaxFiles: 100}.URI()
	cfg.Stdio.Stdout, cfg.Stdio.Stderr = uri, uri
	cfg.Files = &Files{}
	a, b := open(t, cfg), open(t, cfg)
	ca, cb := start(t, a), start(t, b)
	other := cfg
	other.Stdio.Stdout = "json-file://" + path
	if s, err := Open(testContext(t), other); !errdefs.IsFailedPrecondition(err) {
		closeNow(s)
		t.Errorf("other options: %v", err)
	}
	want := lines(100000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		write(t, ca.out, []byte(want))
		ca.exit()
	}()
	write(t, cb.err, []byte(want))
	<-done
	cb.exit()
	mustClose(t, a)
	mustClose(t, b)
	for _, stream := range []string{"stdout", "stderr"} {
		if got := logText(t, path, stream); got != want {
			t.Errorf("%s has %d bytes", stream, len(got))
		}
	}
}

func TestFullDiskDoesNotStopALog(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path, ballast := filepath.Join(dir, "log"), filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 30<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	cfg := fifoConfig("json-file://" + path)
	cfg.Log = log.logger()
	s := open(t, cfg)
	c := start(t, s)
	text := lines(1 << 20)
	write(t, c.out, []byte(text)) // it returns: the container is not held up
	eventually(t, "the loss is logged", func() bool { return strings.Contains(log.String(), "no space left") })
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	wrote := len(text)
	eventually(t, "the log goes on", func() bool {
		write(t, c.out, []byte("again\n"))
		wrote += len("again\n")
		return strings.Contains(logText(t, path, "stdout"), "again")
	})
	c.exit()
	mustClose(t, s)
	lost := 0
	for _, rec := range logRecords(t, path) {
		if rec.Stream == logfile.Lost {
			var n int
			if _, err := fmt.Sscanf(rec.Text, "%d bytes of output", &n); err != nil {
				t.Errorf("%q", rec.Text)
			}
			lost += n
		}
	}
	if got := len(logText(t, path, "stdout")); lost == 0 || lost+got != wrote {
		t.Errorf("%d bytes lost and %d there, of %d", lost, got, wrote)
	}
}

func TestLogOfATerminal(t *testing.T) {
	checkLeaks(t)
	cfg, path := logConfig(t)
	cfg.Stdio.Terminal, cfg.Dir = true, t.TempDir()
	s := open(t, cfg)
	slave := startTerminal(t, s, false)
	want := strings.Repeat("äöü\n", 3000)
	write(t, slave, []byte(want))
	slave.Close()
	s.Exited()
	mustClose(t, s)
	if got := logText(t, path, "stdout"); got != strings.ReplaceAll(want, "\n", "\r\n") {
		t.Errorf("%d bytes: %.100q", len(got), got)
	}
}

// TestKilledRecorderLosesNoByte kills the process that writes a log, at any
// instruction, again and again: what it had taken from the pipe is in the log,
// and little is there twice.
func TestKilledRecorderLosesNoByte(t *testing.T) {
	const size, rounds = 4 << 20, 8
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	l := born(t, fifoConfig(logfile.Config{Path: path, MaxSize: 1 << 20, MaxFiles: 100}.URI()))
	c := start(t, l.now)
	l.self.die(l.now)
	want := lines(size)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.out.Write([]byte(want))
		c.exit()
		wrote <- err
	}()
	r, err := logfile.Read(path, logfile.Filter{Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	at, again, total := 0, 0, 0
	readUntil := func(goal int) {
		t.Helper()
		eventually(t, "the mover moves", func() bool {
			for {
				rec, err := r.Next()
				if err == io.EOF {
					return total >= goal
				}
				if err != nil {
					t.Fatal(err)
				}
				if !strings.HasPrefix(want[at:], rec.Text) {
					// A successor begins with what its predecessor had stored last.
					from := max(0, total-2*logfile.MaxText)
					if at = from + strings.Index(want[from:], rec.Text); at < from || at > total {
						t.Fatalf("after %d bytes: %q", total, rec.Text)
					}
				}
				end := at + len(rec.Text)
				again += max(0, min(end, total)-at)
				at, total = end, max(end, total)
			}
		})
	}
	for round := range rounds {
		cmd := startMover(t, l.cfg.Stdio, l.keeper.handOver(t, l.cfg.Name+"/"))
		readUntil((round + 1) * size / (rounds + 1))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	cmd := startMover(t, l.cfg.Stdio, l.keeper.handOver(t, l.cfg.Name+"/"))
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	readUntil(size)
	if again > rounds*logfile.MaxText {
		t.Errorf("%d bytes are there twice", again)
	}
	for _, name := range l.keeper.names() {
		l.keeper.Drop(name)
	}
}
