package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

func TestOutputOfEverySizeArrives(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20} {
		for _, to := range []string{"fifo", "fifo URI", "file", "file URI"} {
			t.Run(fmt.Sprintf("%s %d", to, n), func(t *testing.T) {
				checkLeaks(t)
				want := pattern(n)
				got := roundTrip(t, to, want)
				wantBytes(t, "stdout", got, want)
			})
		}
	}
}

// roundTrip has a container write want and exit at once, and returns what the
// client gets.
func roundTrip(t *testing.T, to string, want []byte) []byte {
	var value string
	var got func() []byte
	if strings.HasPrefix(to, "fifo") {
		value = mkfifo(t)
		got = collect(t, value)
	} else {
		path := filepath.Join(t.TempDir(), "new dir", "log")
		value = path
		got = func() []byte {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	switch to {
	case "fifo URI":
		value = "fifo://" + value
	case "file URI":
		value = "file://" + strings.ReplaceAll(value, " ", "%20")
	case "file":
		if err := os.MkdirAll(filepath.Dir(value), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(value, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, fifoConfig(value))
	c := start(t, s)
	write(t, c.out, want)
	c.exit()
	waitDrained(t, s)
	b := got() // before Close: EOF does not wait for it
	mustClose(t, s)
	return b
}

func TestSmallWritesArriveInOrder(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	got := collect(t, path)
	s := open(t, fifoConfig(path))
	c := start(t, s)
	var want bytes.Buffer
	for i := range 20000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		write(t, c.out, []byte(line))
	}
	c.exit()
	wantBytes(t, "stdout", got(), want.Bytes())
}

func TestSlowReaderGetsAll(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, fifoConfig(path))
	r := openClient(t, path, os.O_RDONLY)
	c := start(t, s)
	want := pattern(1 << 19)
	go func() {
		_, _ = c.out.Write(want)
		c.exit()
	}()
	var got []byte
	// Odd pieces, the FIFO always full: every splice ends at a full side.
	for piece := make([]byte, 777); ; {
		n, err := r.Read(piece)
		got = append(got, piece[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wantBytes(t, "stdout", got, want)
}

func TestReaderLeavesAndReturns(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, fifoConfig(path))
	r := openClient(t, path, os.O_RDONLY)
	c := start(t, s)
	write(t, c.out, []byte("one"))
	wantBytes(t, "first client", readN(t, r, 3), []byte("one"))
	r.Close()
	want := pattern(3 * 65536)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.out.Write(want)
		c.exit()
		wrote <- err
	}()
	wantBytes(t, "second client", collect(t, path)(), want)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
}

func TestReaderThatComesAfterTheExit(t *testing.T) {
	for _, n := range []int{0, 1, 65536} {
		for _, shared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes, shared watcher %v", n, shared), func(t *testing.T) {
				checkLeaks(t)
				path := mkfifo(t)
				cfg := fifoConfig(path)
				if shared {
					w, err := NewWatcher()
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { w.Close() })
					cfg.Watcher = w
				}
				s := open(t, cfg)
				c := start(t, s)
				want := pattern(n)
				write(t, c.out, want)
				c.exit()
				waitDrained(t, s)
				wantBytes(t, "late client", collect(t, path)(), want)
				mustClose(t, s)
			})
		}
	}
}

func TestManyLateReadersShareOneWatcher(t *testing.T) {
	checkLeaks(t)
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	const n = 200 // more than the kernel gives inotify instances
	var all []*Streams
	var paths []string
	for range n {
		path := mkfifo(t)
		cfg := fifoConfig(path)
		cfg.Watcher = w
		s := open(t, cfg)
		c := start(t, s)
		write(t, c.out, []byte(path))
		c.exit()
		all, paths = append(all, s), append(paths, path)
	}
	for i, path := range paths {
		waitDrained(t, all[i])
		wantBytes(t, "late client", collect(t, path)(), []byte(path))
	}
	for _, s := range all {
		mustClose(t, s)
	}
	if len(w.watches) != 0 {
		t.Fatalf("%d watches are left", len(w.watches))
	}
}

func TestWithoutWatcherItPolls(t *testing.T) {
	checkLeaks(t)
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	w.Close() // every watch fails, as where the kernel's limit is reached
	path := mkfifo(t)
	cfg := fifoConfig(path)
	cfg.Watcher = w
	s := open(t, cfg)
	c := start(t, s)
	write(t, c.out, []byte("x"))
	c.exit()
	waitDrained(t, s)
	wantBytes(t, "late client", collect(t, path)(), []byte("x"))
}

func TestCloseWithoutAnyReader(t *testing.T) {
	checkLeaks(t)
	s := open(t, fifoConfig(mkfifo(t)))
	c := start(t, s)
	write(t, c.out, []byte("nobody reads this"))
	c.exit()
	mustClose(t, s)
	mustClose(t, s) // again
}

func TestCloseIsBoundedAndSaysWhatIsLost(t *testing.T) {
	checkLeaks(t)
	s := open(t, fifoConfig(mkfifo(t)))
	c := start(t, s)
	go c.out.Write(pattern(1 << 20)) // blocks: the FIFO and the pipe are full
	eventually(t, "the pipe is full", func() bool { return pending(s.outs[0].pipe) == 65536 })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	err := s.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "stdout was closed with 65536 bytes") {
		t.Fatalf("Close: %v", err)
	}
	waitDrained(t, s)
}

func TestBackgroundChildHoldsTheOutput(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, fifoConfig(path))
	r := openClient(t, path, os.O_RDONLY)
	c := start(t, s)
	write(t, c.out, []byte("done"))
	wantBytes(t, "stdout", readN(t, r, 4), []byte("done"))
	s.Exited() // but c.out stays open
	select {
	case <-s.Drained():
		t.Fatal("drained while a writer is left")
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err) // nothing was lost
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("after Close the client reads %d, %v", n, err)
	}
}

func TestEachStreamAlone(t *testing.T) {
	t.Run("stderr", func(t *testing.T) {
		checkLeaks(t)
		path := mkfifo(t)
		got := collect(t, path)
		s := open(t, Config{Stdio: task.Stdio{Stderr: path}})
		c := start(t, s)
		write(t, c.out, []byte("to the null device"))
		write(t, c.err, []byte("oops"))
		c.exit()
		wantBytes(t, "stderr", got(), []byte("oops"))
	})
	t.Run("nothing", func(t *testing.T) {
		checkLeaks(t)
		s := open(t, Config{Stdio: task.Stdio{Stdin: "/dev/null", Stdout: "file:///dev/null"}})
		c := start(t, s)
		waitDrained(t, s)
		write(t, c.out, []byte("x"))
		write(t, c.err, []byte("x"))
		if n, err := c.in.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("stdin: %d, %v", n, err)
		}
		mustClose(t, s)
	})
}

func TestBothOutputsInOneFile(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("earlier\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Stdio: task.Stdio{Stdout: path, Stderr: "file://" + path}})
	c := start(t, s)
	const n = 3000
	lines := func(f *os.File, text string) {
		for range n {
			_, _ = f.WriteString(text)
		}
		f.Close()
	}
	go lines(c.out, "out\n")
	// stdout ends first; what stderr says later is not lost.
	eventually(t, "stdout is in the file", func() bool {
		b, _ := os.ReadFile(path)
		return bytes.Count(b, []byte("out\n")) == n
	})
	lines(c.err, "err\n")
	waitDrained(t, s)
	mustClose(t, s)
	b, _ := os.ReadFile(path)
	if !bytes.HasPrefix(b, []byte("earlier\n")) || len(b) != 8+2*4*n || bytes.Count(b, []byte("err\n")) != n {
		t.Fatalf("the file has %d bytes: %.60q", len(b), b)
	}
}

func TestConcurrentOutputsInOneFile(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	s := open(t, Config{Stdio: task.Stdio{Stdout: "file://" + path, Stderr: "file://" + path}})
	c := start(t, s)
	const n = 1 << 20
	go func() { _, _ = c.out.Write(bytes.Repeat([]byte("o"), n)); c.out.Close() }()
	_, _ = c.err.Write(bytes.Repeat([]byte("e"), n))
	c.err.Close()
	waitDrained(t, s)
	b, _ := os.ReadFile(path)
	if len(b) != 2*n || bytes.Count(b, []byte("o")) != n || bytes.Count(b, []byte("e")) != n {
		t.Fatalf("%d bytes, %d of stdout", len(b), bytes.Count(b, []byte("o")))
	}
}

func TestBothOutputsInOneFIFO(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	got := collect(t, path)
	s := open(t, Config{Stdio: task.Stdio{Stdout: path, Stderr: path}})
	c := start(t, s)
	const n = 1 << 19
	go func() { _, _ = c.out.Write(bytes.Repeat([]byte("o"), n)); c.out.Close() }()
	_, _ = c.err.Write(bytes.Repeat([]byte("e"), n))
	c.err.Close()
	b := got()
	if bytes.Count(b, []byte("o")) != n || bytes.Count(b, []byte("e")) != n {
		t.Fatalf("%d bytes arrived of %d", len(b), 2*n)
	}
}

func TestLogThatIsTruncatedGoesOnAtItsStart(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	s := open(t, fifoConfig("file://"+path))
	c := start(t, s)
	write(t, c.out, pattern(10000))
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	eventually(t, "the log is written", func() bool { return size() == 10000 })
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	write(t, c.out, []byte("new"))
	c.exit()
	waitDrained(t, s)
	b, _ := os.ReadFile(path)
	// A truncation between seek and splice leaves a hole.
	wantBytes(t, "log", bytes.TrimLeft(b, "\x00"), []byte("new"))
}

func TestFullDiskDoesNotStopTheContainer(t *testing.T) {
	for _, copies := range []bool{false, true} {
		t.Run(fmt.Sprintf("copies %v", copies), func(t *testing.T) {
			checkLeaks(t)
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			log := &logBuffer{}
			path := filepath.Join(dir, "log")
			cfg := fifoConfig("file://" + path)
			cfg.Log = log.logger()
			s := open(t, cfg)
			if copies {
				refuseSplice(t, s)
			}
			c := start(t, s)
			write(t, c.out, pattern(1<<20)) // it does not block
			var full int64
			k := s.outs[0].sink
			eventually(t, "what does not fit is discarded", func() bool {
				st, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				full = st.Size()
				k.mu.Lock()
				defer k.mu.Unlock()
				return full > 0 && k.lost == 1<<20-full
			})
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
			write(t, c.out, []byte("again"))
			c.exit()
			mustClose(t, s)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// A truncation between seek and splice leaves a hole.
			wantBytes(t, "log after the disk has room", bytes.TrimLeft(b, "\x00"), []byte("again"))
			if n := strings.Count(log.String(), "is being discarded"); n != 1 {
				t.Fatalf("logged %d times:\n%s", n, log)
			}
			// All but what fits on the disk, to the byte.
			if !strings.Contains(log.String(), fmt.Sprintf("output was discarded\" path=%s bytes=%d", path, 1<<20-full)) {
				t.Fatalf("log:\n%s", log)
			}
		})
	}
}

// refuseSplice makes the kernel refuse a splice into the log with the error of a
// file system that has none: O_APPEND does that.
func refuseSplice(t *testing.T, s *Streams) {
	t.Helper()
	if err := withFd(s.outs[0].sink.w.conn, func(fd uintptr) error {
		_, err := unix.FcntlInt(fd, unix.F_SETFL, unix.O_APPEND)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestFileSystemWithoutSplice(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "log")
	s := open(t, fifoConfig("file://"+path))
	refuseSplice(t, s)
	c := start(t, s)
	want := pattern(300000)
	write(t, c.out, want)
	c.exit()
	mustClose(t, s)
	if !s.outs[0].sink.copies.Load() {
		t.Fatal("it was spliced")
	}
	b, _ := os.ReadFile(path)
	wantBytes(t, "log", b, want)
}

func TestFailureOfTheRuntimeLeavesNothing(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	k := newTestKeeper(t)
	s := open(t, Config{Stdio: task.Stdio{Stdin: mkfifo(t), Stdout: path, Stderr: path}, Name: "c", Keeper: k})
	r := openClient(t, path, os.O_RDONLY)
	mustClose(t, s)
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the client reads %d, %v", n, err)
	}
	if err := s.Started(testContext(t)); err == nil {
		t.Fatal("closed streams were started")
	}
	if a, _, _ := s.RuntimeFiles(); a != nil {
		t.Fatal("closed streams have files")
	}
}

func TestPipesBelongToTheContainersUser(t *testing.T) {
	checkLeaks(t)
	s := open(t, Config{Stdio: task.Stdio{Stdin: mkfifo(t), Stdout: mkfifo(t), Stderr: mkfifo(t)}, UID: 1234, GID: 5678})
	in, out, errw := s.RuntimeFiles()
	for _, f := range []*os.File{in, out, errw} {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != 1234 || st.Gid != 5678 {
			t.Fatalf("owner %d:%d", st.Uid, st.Gid)
		}
		if flags, _ := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); flags&unix.O_NONBLOCK != 0 {
			t.Fatal("the container's end is non-blocking")
		}
		if flags, _ := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Fatal("the container's end is inherited by every child")
		}
	}
}

func TestOpenOfAnEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Open(ctx, Config{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

type brokenKeeper struct{}

func (brokenKeeper) Keep(string, *os.File) error { return errors.New("no room") }
func (brokenKeeper) Drop(string)                 {}

func TestKeeperThatFailsIsNoReasonNotToRun(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	got := collect(t, path)
	log := &logBuffer{}
	cfg := fifoConfig(path)
	cfg.Name, cfg.Keeper, cfg.Log = "ns/c", brokenKeeper{}, log.logger()
	s := open(t, cfg)
	c := start(t, s)
	write(t, c.out, []byte("x"))
	c.exit()
	wantBytes(t, "stdout", got(), []byte("x"))
	for _, name := range []string{"ns/c/stdout.r", "ns/c/stdout.w"} {
		if !strings.Contains(log.String(), name) {
			t.Fatalf("%s is not in the log: %s", name, log)
		}
	}
	mustClose(t, s)
}
