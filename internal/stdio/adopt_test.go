package stdio

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// life is a row of processes that have the same streams one after the other.
type life struct {
	t      *testing.T
	keeper *testKeeper
	cfg    Config
	now    *Streams
	self   *mortal
}

// born opens streams in the first process.
func born(t *testing.T, cfg Config) *life {
	t.Helper()
	l := &life{t: t, keeper: newTestKeeper(t), cfg: cfg}
	l.cfg.Name = "ns/c"
	l.now = open(t, l.next())
	return l
}

func (l *life) next() Config {
	l.self = &mortal{testKeeper: l.keeper}
	cfg := l.cfg
	cfg.Keeper = l.self
	return cfg
}

// kill ends the process and has a successor adopt what was kept, less the files
// named.
func (l *life) kill(lose ...string) {
	l.t.Helper()
	l.self.die(l.now)
	for _, name := range lose {
		l.keeper.Drop(l.cfg.Name + "/" + name)
	}
	s, err := Adopt(testContext(l.t), l.next(), l.keeper.handOver(l.t, l.cfg.Name+"/"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { closeNow(s) })
	l.now = s
}

func (l *life) wantKept(names ...string) {
	l.t.Helper()
	var got []string
	for _, n := range l.keeper.names() {
		got = append(got, strings.TrimPrefix(n, l.cfg.Name+"/"))
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		l.t.Fatalf("kept %v, want %v", got, names)
	}
}

func TestAdoptLosesNoByte(t *testing.T) {
	checkLeaks(t)
	stdin, stdout, stderr := mkfifo(t), mkfifo(t), mkfifo(t)
	l := born(t, Config{Stdio: task.Stdio{Stdin: stdin, Stdout: stdout, Stderr: stderr}})
	gotOut, gotErr := collect(t, stdout), collect(t, stderr)
	client := openClient(t, stdin, os.O_WRONLY)
	c := start(t, l.now)
	l.wantKept("stdin.w", "stdin.r", "stdin.hold", "stdout.r", "stdout.w", "stderr.r", "stderr.w")
	want := pattern(8 << 20)
	go func() { // the client types, and sees no EPIPE
		if _, err := client.Write(want); err != nil {
			t.Error(err)
		}
		client.Close()
	}()
	done := make(chan struct{})
	go func() { // the container is cat
		defer close(done)
		if _, err := io.Copy(c.err, io.TeeReader(c.in, c.out)); err != nil {
			t.Error(err)
		}
		c.exit()
	}()
	for range 20 {
		l.kill()
	}
	if err := l.now.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "stdout", gotOut(), want)
	wantBytes(t, "stderr", gotErr(), want)
	<-done
	mustClose(t, l.now)
	l.wantKept()
}

func TestAdoptAfterCloseStdin(t *testing.T) {
	checkLeaks(t)
	stdin := mkfifo(t)
	l := born(t, stdinConfig(stdin))
	client := openClient(t, stdin, os.O_WRONLY)
	c := start(t, l.now)
	if err := l.now.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	l.wantKept("stdin.w", "stdin.r")
	l.kill()
	got := readAll(t, c.in)
	write(t, client, []byte("x"))
	client.Close()
	wantBytes(t, "stdin", got(), []byte("x"))
	eventually(t, "nothing is kept of an ended stdin", func() bool { return len(l.keeper.names()) == 0 })
}

func TestAdoptOfAFile(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	l := born(t, Config{Stdio: task.Stdio{Stdout: "file://" + path, Stderr: "file://" + path}})
	c := start(t, l.now)
	var want []byte
	for i, lose := range [][]string{nil, {"stdout.w"}, nil} {
		chunk := bytes.Repeat([]byte{byte('a' + i)}, 100000)
		write(t, c.out, chunk)
		want = append(want, chunk...)
		l.kill(lose...)
	}
	write(t, c.err, []byte("end"))
	c.exit()
	waitDrained(t, l.now)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "log", b, append(want, "end"...))
	mustClose(t, l.now)
}

func TestAdoptAfterTheExit(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	l := born(t, fifoConfig(path))
	c := start(t, l.now)
	write(t, c.out, []byte("unread"))
	c.exit()
	waitDrained(t, l.now)
	l.wantKept("stdout.w")
	l.kill()
	waitDrained(t, l.now)
	wantBytes(t, "late client", collect(t, path)(), []byte("unread"))
	mustClose(t, l.now)
}

func TestAdoptReopensByPath(t *testing.T) {
	checkLeaks(t)
	stdin, stdout := mkfifo(t), mkfifo(t)
	l := born(t, Config{Stdio: task.Stdio{Stdin: stdin, Stdout: stdout}})
	c := start(t, l.now)
	l.kill("stdout.w", "stdin.r", "stdin.hold")
	l.wantKept("stdin.w", "stdin.r", "stdin.hold", "stdout.r", "stdout.w")
	l.kill("stdin.r")
	l.wantKept("stdin.w", "stdin.r", "stdin.hold", "stdout.r", "stdout.w")
	got := collect(t, stdout)
	client := openClient(t, stdin, os.O_WRONLY)
	write(t, client, []byte("in"))
	wantBytes(t, "stdin", readN(t, c.in, 2), []byte("in"))
	write(t, c.out, []byte("out"))
	c.exit()
	wantBytes(t, "stdout", got(), []byte("out"))
	mustClose(t, l.now)
}

func TestAdoptWorksWithoutThePath(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	l := born(t, fifoConfig(path))
	r := openClient(t, path, os.O_RDONLY)
	c := start(t, l.now)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.kill()
	write(t, c.out, []byte("x"))
	c.exit()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "stdout", got, []byte("x"))
	mustClose(t, l.now)
}

func TestAdoptWithoutDestinationDoesNotBlockTheContainer(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	log := &logBuffer{}
	cfg := fifoConfig(path)
	cfg.Log = log.logger()
	l := born(t, cfg)
	c := start(t, l.now)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.kill("stdout.w")
	write(t, c.out, pattern(1<<20))
	c.exit()
	waitDrained(t, l.now)
	if !strings.Contains(log.String(), "output is discarded") {
		t.Fatalf("log: %s", log)
	}
	mustClose(t, l.now)
}

func TestAdoptOfNothing(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		checkLeaks(t)
		cfg := Config{Stdio: task.Stdio{Stdin: mkfifo(t), Stdout: mkfifo(t), Terminal: terminal}}
		s, err := Adopt(testContext(t), cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		waitDrained(t, s)
		if err := s.Resize(task.ConsoleSize{Width: 1, Height: 1}); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseStdin(); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
	}
}

func TestAdoptOfABadConfigClosesWhatItGot(t *testing.T) {
	checkLeaks(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, err = Adopt(testContext(t), fifoConfig("relative"), map[string]*os.File{"stdout.r": r})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Adopt(ctx, Config{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestAdoptOfATerminal(t *testing.T) {
	checkLeaks(t)
	stdin, stdout := mkfifo(t), mkfifo(t)
	cfg := terminalConfig(t, stdin, stdout)
	l := born(t, cfg)
	got := collect(t, stdout)
	client := openClient(t, stdin, os.O_WRONLY)
	slave := startTerminal(t, l.now, true)
	l.wantKept("pty", "stdin.r", "stdin.hold", "stdout.w")
	write(t, slave, []byte("one "))
	l.kill()
	write(t, client, []byte("typed"))
	wantBytes(t, "terminal", readN(t, slave, 5), []byte("typed"))
	if err := l.now.Resize(task.ConsoleSize{Width: 70, Height: 20}); err != nil {
		t.Fatal(err)
	}
	l.kill()
	write(t, slave, []byte("two"))
	slave.Close()
	l.now.Exited()
	waitDrained(t, l.now)
	mustClose(t, l.now)
	if b := string(got()); !strings.HasSuffix(b, "two") {
		t.Fatalf("terminal: %q", b)
	}
	l.wantKept()
}

func TestAdoptOfALostTerminal(t *testing.T) {
	checkLeaks(t)
	stdin, stdout := mkfifo(t), mkfifo(t)
	l := born(t, terminalConfig(t, stdin, stdout))
	got := collect(t, stdout)
	startTerminal(t, l.now, true)
	l.kill("pty")
	waitDrained(t, l.now)
	got() // EOF
	mustClose(t, l.now)
}
