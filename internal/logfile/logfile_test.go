package logfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func openLog(t *testing.T, cfg Config) *Writer {
	t.Helper()
	w, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func mustWrite(t *testing.T, w *Writer, stream string, at time.Time, text string) {
	t.Helper()
	if lost, err := w.Write(stream, at, []byte(text)); lost != 0 || err != nil {
		t.Fatal(lost, err)
	}
}

func records(t *testing.T, r *Reader) []Record {
	t.Helper()
	var got []Record
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rec)
	}
}

func read(t *testing.T, path string, f Filter) *Reader {
	t.Helper()
	r, err := Read(path, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// text joins what a reader has of a stream.
func text(t *testing.T, r *Reader, stream string) string {
	t.Helper()
	var b strings.Builder
	for _, rec := range records(t, r) {
		if rec.Stream == stream {
			b.WriteString(rec.Text)
		}
	}
	return b.String()
}

var all = Filter{Tail: -1}

func TestURI(t *testing.T) {
	for _, c := range []Config{
		{Path: "/var/log/x y?#%.log", MaxFiles: 1},
		{Path: "/x", MaxSize: 1 << 40, MaxFiles: 7},
	} {
		if got, err := Parse(c.URI()); err != nil || got != c {
			t.Errorf("%s: %+v, %v", c.URI(), got, err)
		}
	}
	for _, bad := range []string{
		"file:///x", "json-file://host/x", "json-file:x", "json-file://", "json-file:///", "json-file:///x?max-size=1k",
		"json-file:///x?max-size=0", "json-file:///x?max-file=-1", "json-file:///x?max-file=1001", "json-file:///x?maxsize=1",
		"json-file:///x?max-file=1&max-file=2", "json-file:///x#y", "json-file:///%00", "json-file:///x?max-size=1;max-file=2",
	} {
		if c, err := Parse(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %+v, %v", bad, c, err)
		}
	}
}

func TestLinesAreRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "log")
	w := openLog(t, Config{Path: path})
	long := strings.Repeat("é", MaxText/2) + "é\n" // the cut would fall between two characters, moved by one byte
	mustWrite(t, w, "stdout", epoch, "one\ntwo\npart")
	mustWrite(t, w, "stderr", epoch.Add(time.Second), "<&>\xff\n")
	mustWrite(t, w, "stdout", epoch, "x"+long)
	got := records(t, read(t, path, all))
	want := []Record{
		{"one\n", "stdout", epoch},
		{"two\n", "stdout", epoch},
		{"part", "stdout", epoch},
		{"<&>\uFFFD\n", "stderr", epoch.Add(time.Second)},
		{"x" + strings.Repeat("é", MaxText/2-1), "stdout", epoch},
		{"éé\n", "stdout", epoch},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %.300q", got)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"log":"one\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}` + "\n"; !strings.HasPrefix(string(b), want) {
		t.Errorf("%.200s", b)
	}
}

func TestRotation(t *testing.T) {
	for _, files := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "log")
			w := openLog(t, Config{Path: path, MaxSize: 1000, MaxFiles: files})
			var written []string
			for i := range 200 {
				line := fmt.Sprintf("line %d\n", i)
				written = append(written, line)
				mustWrite(t, w, "stdout", epoch, line)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != files {
				t.Errorf("files: %v, want %d", entries, files)
			}
			for _, e := range entries {
				if info, err := e.Info(); err != nil || info.Size() > 1000 {
					t.Errorf("%s: %v, %v", e.Name(), info.Size(), err)
				}
			}
			got := text(t, read(t, path, all), "stdout")
			if !strings.HasSuffix(strings.Join(written, ""), got) || !strings.HasPrefix(got, "line ") || len(got) < 100*(files-1) {
				t.Errorf("%d bytes: %.100q", len(got), got)
			}
			if err := Remove(path); err != nil {
				t.Fatal(err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("left: %v", entries)
			}
		})
	}
}

// TestFollowOverRotation reads while the log is written and rotated: between
// two reads there may be several rotations.
func TestFollowOverRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := read(t, path, all) // before it exists
	if got := records(t, r); got != nil {
		t.Fatal(got)
	}
	w := openLog(t, Config{Path: path, MaxSize: 500, MaxFiles: 8})
	var want, got strings.Builder
	for i := range 300 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		mustWrite(t, w, "stdout", epoch, line)
		if i%(1+i%37) == 0 {
			got.WriteString(text(t, r, "stdout"))
		}
	}
	got.WriteString(text(t, r, "stdout"))
	if got.String() != want.String() {
		t.Errorf("got %d bytes, want %d", got.Len(), want.Len())
	}
}

// A log that is rotated twice while its files are listed shows a file again, at a
// higher name, after one that is newer.
func TestMeetAgain(t *testing.T) {
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"second", "third", "second", "first"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		files = meet(files, f)
	}
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f.Name()))
	}
	closeAll(files)
	if want := []string{"third", "second", "first"}; !slices.Equal(names, want) {
		t.Errorf("from the newest to the oldest %q, want %q", names, want)
	}
}

// TestFollowAllTheTime reads from another goroutine, so that rotations fall into
// every moment.
func TestFollowAllTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := openLog(t, Config{Path: path, MaxSize: 300, MaxFiles: 200})
	const n = 500
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			if _, err := w.Write("stdout", epoch, fmt.Appendf(nil, "line %d\n", i)); err != nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() { <-done }) // a failure ends the test before the writer
	r := read(t, path, all)
	next := 0
	for ended := false; ; {
		rec, err := r.Next()
		if err == io.EOF {
			if ended {
				break
			}
			select {
			case <-done:
				ended = true // once more, to its end
			default:
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("line %d\n", next); rec.Text != want {
			t.Fatalf("got %q, want %q", rec.Text, want)
		}
		next++
	}
	if next != n || r.Skipped() != 0 {
		t.Errorf("%d of %d lines, %d skipped", next, n, r.Skipped())
	}
}

func TestTailSinceUntil(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := openLog(t, Config{Path: path, MaxSize: 2000, MaxFiles: 100})
	var lines []string
	at := func(i int) time.Time { return epoch.Add(time.Duration(i) * time.Second) }
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("line %d\n", i))
		mustWrite(t, w, "stdout", at(i), lines[i][:3])
		mustWrite(t, w, "stdout", at(i), lines[i][3:])
	}
	join := func(from, to int) string { return strings.Join(lines[from:to], "") }
	for name, test := range map[string]struct {
		f    Filter
		want string
	}{
		"all":             {all, join(0, 100)},
		"none":            {Filter{Tail: 0}, ""},
		"last":            {Filter{Tail: 1}, join(99, 100)},
		"over files":      {Filter{Tail: 60}, join(40, 100)},
		"exactly all":     {Filter{Tail: 100}, join(0, 100)},
		"more than all":   {Filter{Tail: 1000}, join(0, 100)},
		"since":           {Filter{Tail: -1, Since: at(90)}, join(90, 100)},
		"until":           {Filter{Tail: -1, Until: at(10)}, join(0, 11)},
		"window":          {Filter{Tail: -1, Since: at(20), Until: at(29)}, join(20, 30)},
		"tail of window":  {Filter{Tail: 3, Since: at(20), Until: at(29)}, join(27, 30)},
		"window in tail":  {Filter{Tail: 50, Since: at(95)}, join(95, 100)},
		"after the end":   {Filter{Tail: -1, Since: at(200)}, ""},
		"before the time": {Filter{Tail: 5, Until: at(-1)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := read(t, path, test.f)
			if got := text(t, r, "stdout"); got != test.want {
				t.Errorf("got %q\nwant %q", got, test.want)
			}
		})
	}
	r := read(t, path, Filter{Tail: 1})
	records(t, r)
	mustWrite(t, w, "stderr", at(101), "more\n")
	if got := records(t, r); len(got) != 1 || got[0].Text != "more\n" {
		t.Errorf("after the tail: %q", got)
	}
}

// TestCutRecord opens a log whose writer was killed in the middle of a record.
func TestCutRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := openLog(t, Config{Path: path})
	mustWrite(t, w, "stdout", epoch, "whole\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"log":"hal`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got := text(t, read(t, path, all), "stdout"); got != "whole\n" {
		t.Errorf("a reader sees %q", got)
	}
	mustWrite(t, openLog(t, Config{Path: path}), "stdout", epoch, "half\n")
	r := read(t, path, all)
	if got := text(t, r, "stdout"); got != "whole\nhalf\n" || r.Skipped() > 0 {
		t.Errorf("%q, %d skipped", got, r.Skipped())
	}
}

func TestReaderSkipsWhatIsNoRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	body := strings.Join([]string{
		`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}`, "rubbish", "{}", strings.Repeat("x", maxLine+1),
		`{"log":"b\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}`, "",
	}, "\n")
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	r := read(t, path, all)
	if got := text(t, r, "stdout"); got != "a\nb\n" || r.Skipped() != 3 {
		t.Errorf("%q, %d skipped", got, r.Skipped())
	}
}

// TestDiskFull writes to a file system that fills up: the log says what it
// has not, whole records only, and the writer goes on.
func TestDiskFull(t *testing.T) {
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
	w := openLog(t, Config{Path: path})
	mustWrite(t, w, "stdout", epoch, "first\n")
	if err := os.WriteFile(ballast, make([]byte, 60<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("0123456789abcde\n"), 512)
	total := 0
	for range 3 {
		lost, err := w.Write("stdout", epoch, chunk)
		if lost != len(chunk) || !errors.Is(err, unix.ENOSPC) {
			t.Fatal(lost, err)
		}
		total += lost
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, w, "stdout", epoch, "last\n")
	r := read(t, path, all)
	got := records(t, r)
	if len(got) != 3 || got[0].Text != "first\n" || got[2].Text != "last\n" || r.Skipped() != 0 ||
		got[1].Stream != Lost || !strings.HasPrefix(got[1].Text, fmt.Sprintf("%d bytes", total)) {
		t.Errorf("%d lost, got %q", total, got)
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "link", "."} {
		if w, err := Open(Config{Path: filepath.Join(dir, name)}); err == nil {
			w.Close()
			t.Errorf("%s was opened", name)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\nb"), uint8(3))
	f.Add([]byte("é\xff\x00\n\n"), uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, step uint8) {
		path := filepath.Join(t.TempDir(), "log")
		w := openLog(t, Config{Path: path})
		for rest := p; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			piece := WholeRunes(rest[:n])
			if n == len(rest) {
				piece = rest
			}
			mustWrite(t, w, "stdout", epoch, string(piece))
			rest = rest[len(piece):]
		}
		var want Record
		b, err := json.Marshal(Record{Text: string(p)})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if step < 4 {
			return // too narrow for the longest character
		}
		if got := text(t, read(t, path, all), "stdout"); got != want.Text {
			t.Errorf("got %q, want %q", got, want.Text)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	for name, line := range map[string]string{"short lines": "line 1234\n", "long lines": strings.Repeat("x", 100) + "\n"} {
		b.Run(name, func(b *testing.B) {
			w, err := Open(Config{Path: filepath.Join(b.TempDir(), "log"), MaxSize: 100 << 20, MaxFiles: 1})
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			text := []byte(strings.Repeat(line, MaxText/len(line)))
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if lost, err := w.Write("stdout", epoch, text); lost > 0 || err != nil {
					b.Fatal(lost, err)
				}
			}
		})
	}
}
