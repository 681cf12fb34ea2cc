package attach

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// openShim opens the other end of a FIFO as a shim does.
func openShim(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// outputs runs a writer against an attached stdout, and returns what came.
func outputs(t *testing.T, dst *os.File, write func(w *os.File)) *IO {
	t.Helper()
	a, err := New(Config{Parent: t.TempDir(), ID: "x", Stdout: dst})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	_, stdout, _ := a.Paths()
	w := openShim(t, stdout, os.O_WRONLY)
	if err := a.Start(func() {}); err != nil {
		t.Fatal(err)
	}
	write(w)
	return a
}

func drain(t *testing.T, a *IO) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !a.Drain(ctx, patience) {
		t.Fatal("the output does not end")
	}
}

// TestOutput moves more than any buffer holds to every kind of file.
func TestOutput(t *testing.T) {
	want := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	write := func(w *os.File) {
		if _, err := io.WriteString(w, want); err != nil {
			t.Error(err)
		}
		w.Close()
	}
	for name, flags := range map[string]int{"file": os.O_RDWR, "file in append mode": os.O_RDWR | os.O_APPEND} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "out")
			dst, err := os.OpenFile(file, flags|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer dst.Close()
			drain(t, outputs(t, dst, write))
			if got, err := os.ReadFile(file); err != nil || string(got) != want {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
			}
		})
	}
	t.Run("slow pipe", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte, 1)
		go func() {
			var b bytes.Buffer
			// Small reads: the pump finds the pipe full most of the time.
			_, _ = io.CopyBuffer(struct{ io.Writer }{&b}, struct{ io.Reader }{r}, make([]byte, 1000))
			got <- b.Bytes()
		}()
		drain(t, outputs(t, w, write))
		w.Close()
		if b := <-got; string(b) != want {
			t.Errorf("%d bytes, want %d", len(b), len(want))
		}
		r.Close()
	})
}

// TestOutputBeforeStart keeps what a quick process wrote before Start.
func TestOutputBeforeStart(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	a, err := New(Config{Parent: t.TempDir(), ID: "x", Stdout: file})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	_, stdout, _ := a.Paths()
	w := openShim(t, stdout, os.O_WRONLY)
	_, _ = io.WriteString(w, "early")
	w.Close()
	if err := a.Start(func() {}); err != nil {
		t.Fatal(err)
	}
	drain(t, a)
	if got, _ := os.ReadFile(file.Name()); string(got) != "early" {
		t.Errorf("%q", got)
	}
}

// TestDrainGivesUp does not wait for a child in the background, and brings
// what it wrote.
func TestDrainGivesUp(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var held *os.File
	a := outputs(t, file, func(w *os.File) {
		held = w
		_, _ = io.WriteString(w, "line\n")
	})
	defer held.Close()
	if a.Drain(context.Background(), 50*time.Millisecond) {
		t.Error("the end was seen while the other end is open")
	}
	if got, _ := os.ReadFile(file.Name()); string(got) != "line\n" {
		t.Errorf("%q", got)
	}
}

// TestBroken tells of a reader that went away, and keeps taking the output.
func TestBroken(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	a := outputs(t, w, func(w *os.File) {
		// More than the FIFO holds: the writer would stop here for ever.
		_, _ = w.Write(make([]byte, 4*pipeSize))
		w.Close()
	})
	select {
	case <-a.Broken():
	case <-time.After(patience):
		t.Error("not told")
	}
	drain(t, a)
}

// TestFull tells of a file that takes no more, and keeps taking the output.
func TestFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	a := outputs(t, full, func(w *os.File) {
		_, _ = w.Write(make([]byte, 4*pipeSize))
		w.Close()
	})
	select {
	case <-a.Broken():
		if !errors.Is(a.Err(), unix.ENOSPC) {
			t.Error(a.Err())
		}
	case <-time.After(patience):
		t.Error("not told")
	}
	drain(t, a)
}

// TestInput brings the input and its end, and tells the shim of it.
func TestInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a, err := New(Config{Parent: t.TempDir(), ID: "x", Stdin: r})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	stdin, _, _ := a.Paths()
	shim := openShim(t, stdin, os.O_RDONLY)
	defer shim.Close()
	closed := make(chan struct{})
	if err := a.Start(func() { close(closed) }); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "typed")
	w.Close()
	if got, err := io.ReadAll(shim); err != nil || string(got) != "typed" {
		t.Errorf("%q, %v", got, err)
	}
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("the end of the input is not told")
	}
}

// TestCloseLeavesNothing removes the FIFOs, also of a process that never ran.
func TestCloseLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	a, err := New(Config{Parent: parent, ID: "x", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	if in, out, e := a.Paths(); in == "" || out == "" || e == "" {
		t.Errorf("paths: %q %q %q", in, out, e)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(parent); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		t.Error(err)
	}
}

// TestSweep removes what a killed client left, when it was seen without a holder
// twice, and nothing else.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	dirs := map[string]string{}
	for _, name := range []string{"berth-left", "berth-held", "berth-other", "berth-new", "foreign"} {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := mkfifo(filepath.Join(dir, "x-stdout"))
		if err != nil {
			t.Fatal(err)
		}
		if name != "berth-held" {
			f.Close()
		}
		defer f.Close()
		dirs[name] = dir
	}
	if err := os.WriteFile(filepath.Join(dirs["berth-other"], "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for name, dir := range dirs {
			if old := time.Now().Add(-2 * leftTime); name != "berth-new" {
				if err := os.Chtimes(dir, old, old); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Stat(dir); err != nil {
				t.Error(err)
			}
		}
		sweep(parent)
	}
	for name, dir := range dirs {
		if _, err := os.Stat(dir); os.IsNotExist(err) != (name == "berth-left") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRawModeEnds gives the modes back also when the command panics.
func TestRawModeEnds(t *testing.T) {
	master, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	tty, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	modes := func() unix.Termios {
		m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *m
	}
	before := modes()
	func() {
		defer func() { _ = recover() }()
		term, err := OpenTerminal(tty, tty, true)
		if err != nil {
			t.Fatal(err)
		}
		defer term.Restore()
		if modes() != before {
			t.Error("the terminal is raw before it is asked for")
		}
		if err := term.Raw(); err != nil || modes() == before {
			t.Errorf("the terminal is not raw: %v", err)
		}
		panic("lost")
	}()
	if modes() != before {
		t.Errorf("%+v, before %+v", modes(), before)
	}
}

// TestTerminalHasOneOutput names no stderr for a terminal.
func TestTerminalHasOneOutput(t *testing.T) {
	a, err := New(Config{Parent: t.TempDir(), ID: "x", Terminal: true, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, out, e := a.Paths(); out == "" || e != "" {
		t.Errorf("stdout %q, stderr %q", out, e)
	}
}

func FuzzParseKeys(f *testing.F) {
	for _, s := range []string{"ctrl-p,ctrl-q", "a", "ctrl-", "ctrl-é", ",", "ctrl-@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if keys, err := ParseKeys(s); err == nil && len(keys) != strings.Count(s, ",")+1 {
			t.Errorf("%q: %d keys", s, len(keys))
		}
	})
}
