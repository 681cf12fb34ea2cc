package stdio

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// patience bounds every wait of a test.
const patience = 20 * time.Second

// checkLeaks fails the test when it leaves descriptors or goroutines behind.
// It is called first, so that it looks last.
func checkLeaks(t testing.TB) {
	t.Helper()
	// The poller opens its descriptors with the first file that it serves.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	fds, routines := openFds(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "descriptors and goroutines are given back", func() bool {
			return len(openFds(t)) <= len(fds) && runtime.NumGoroutine() <= routines
		})
		if t.Failed() {
			stack := make([]byte, 1<<16)
			t.Logf("before %v\nafter %v\n%s", fds, openFds(t), stack[:runtime.Stack(stack, true)])
		}
	})
}

func openFds(t testing.TB) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]string{}
	for _, e := range entries {
		// The directory's own descriptor is gone by now.
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = to
		}
	}
	return fds
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func mkfifo(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, cfg Config) *Streams {
	t.Helper()
	s, err := Open(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(s) })
	return s
}

// closeNow closes streams without waiting for their output.
func closeNow(s *Streams) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.Close(ctx)
}

// container is the container's side: duplicates of the runtime's files.
type container struct{ in, out, err *os.File }

// start hands the files to a container and starts the streams.
func start(t testing.TB, s *Streams) container {
	t.Helper()
	dup := func(f *os.File) *os.File {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		d := os.NewFile(uintptr(fd), "container")
		t.Cleanup(func() { d.Close() })
		return d
	}
	in, out, err := s.RuntimeFiles()
	c := container{dup(in), dup(out), dup(err)}
	if err := s.Started(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c container) exit() {
	c.in.Close()
	c.out.Close()
	c.err.Close()
}

// openClient opens a client's end as stock clients do: waiting for the other
// side. The file is one that the poller serves, so that it can be closed at any
// time.
func openClient(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	// A read that never ends is a failure. Regular files have no deadline.
	_ = f.SetDeadline(time.Now().Add(patience))
	return f
}

// collect reads a FIFO from open to EOF in the background.
func collect(t testing.TB, path string) func() []byte {
	t.Helper()
	type result struct {
		b   []byte
		err error
	}
	c := make(chan result, 1)
	go func() {
		f, err := os.Open(path)
		if err != nil {
			c <- result{nil, err}
			return
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		c <- result{b, err}
	}()
	return func() []byte {
		t.Helper()
		select {
		case r := <-c:
			if r.err != nil {
				t.Fatal(r.err)
			}
			return r.b
		case <-time.After(patience):
			t.Fatalf("no EOF on %s", path)
			return nil
		}
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func wantBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: got %d bytes %.40q, want %d bytes %.40q", what, len(got), got, len(want), want)
	}
}

func write(t testing.TB, f *os.File, p []byte) {
	t.Helper()
	if _, err := f.Write(p); err != nil {
		t.Fatal(err)
	}
}

func readN(t testing.TB, f *os.File, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func waitDrained(t testing.TB, s *Streams) {
	t.Helper()
	select {
	case <-s.Drained():
	case <-time.After(patience):
		t.Fatal("streams are not drained")
	}
}

func mustClose(t testing.TB, s *Streams) {
	t.Helper()
	if err := s.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// logBuffer collects what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// testKeeper is a keeper in this process.
type testKeeper struct {
	mu    sync.Mutex
	files map[string]*os.File // guarded by mu
}

func newTestKeeper(t testing.TB) *testKeeper {
	k := &testKeeper{files: map[string]*os.File{}}
	t.Cleanup(func() {
		if left := k.names(); len(left) > 0 {
			t.Errorf("files are still kept: %v", left)
		}
	})
	return k
}

func (k *testKeeper) Keep(name string, f *os.File) error {
	d, err := dupFile(f, name)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files[name] != nil {
		return fmt.Errorf("%s is kept twice", name)
	}
	k.files[name] = d
	return nil
}

func dupFile(f *os.File, name string) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	err = withFd(conn, func(old uintptr) (err error) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	return os.NewFile(uintptr(fd), name), err
}

func (k *testKeeper) Drop(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.files[name]; f != nil {
		f.Close()
		delete(k.files, name)
	}
}

func (k *testKeeper) names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for n := range k.files {
		names = append(names, n)
	}
	return names
}

// handOver returns duplicates for a successor, by name without the prefix.
func (k *testKeeper) handOver(t testing.TB, prefix string) map[string]*os.File {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	kept := map[string]*os.File{}
	for n, f := range k.files {
		d, err := dupFile(f, n)
		if err != nil {
			t.Fatal(err)
		}
		kept[n[len(prefix):]] = d
	}
	return kept
}

// mortal is the keeper as one process sees it: what a dead process drops is
// kept.
type mortal struct {
	*testKeeper
	dead atomic.Bool
}

func (m *mortal) Drop(name string) {
	if !m.dead.Load() {
		m.testKeeper.Drop(name)
	}
}

// die ends streams as a kill of their process does: everything is closed,
// nothing is dropped.
func (m *mortal) die(s *Streams) {
	m.dead.Store(true)
	closeNow(s)
}

func fifoConfig(stdout string) Config { return Config{Stdio: task.Stdio{Stdout: stdout}} }
