package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

// openPty makes a pty as a runtime does. The slave is left in the state of a
// new terminal, or without any processing.
func openPty(t *testing.T, raw bool) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "master")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave = os.NewFile(peer, "slave")
	t.Cleanup(func() { master.Close(); slave.Close() })
	if raw {
		tio, err := unix.IoctlGetTermios(int(peer), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		tio.Lflag &^= unix.ICANON | unix.ECHO | unix.ISIG
		tio.Oflag &^= unix.OPOST
		if err := unix.IoctlSetTermios(int(peer), unix.TCSETS, tio); err != nil {
			t.Fatal(err)
		}
	}
	return master, slave
}

// deliver sends files to a console socket as a runtime does.
func deliver(t *testing.T, socket string, files ...*os.File) {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
}

// startTerminal plays the runtime and returns the container's end.
func startTerminal(t *testing.T, s *Streams, raw bool) (slave *os.File) {
	t.Helper()
	master, slave := openPty(t, raw)
	deliver(t, s.ConsoleSocket(), master)
	master.Close()
	if err := s.Started(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return slave
}

func terminalConfig(t *testing.T, stdin, stdout string) Config {
	return Config{Stdio: task.Stdio{Stdin: stdin, Stdout: stdout, Terminal: true}, Dir: t.TempDir()}
}

func TestTerminalOutputWrittenBeforeTheExitIsNotLost(t *testing.T) {
	for _, held := range []bool{false, true} {
		for _, to := range []string{"fifo", "file"} {
			name := to
			if held {
				name += ", a background child holds the terminal"
			}
			t.Run(name, func(t *testing.T) {
				checkLeaks(t)
				path := mkfifo(t)
				got := func() []byte { b, _ := os.ReadFile(path); return b }
				if to == "file" {
					path = filepath.Join(t.TempDir(), "log")
					if err := os.WriteFile(path, nil, 0o600); err != nil {
						t.Fatal(err)
					}
				} else {
					got = collect(t, path)
				}
				s := open(t, terminalConfig(t, "", path))
				slave := startTerminal(t, s, true)
				want := bytes.Repeat([]byte("0123456789abcdef"), 1<<15)
				write(t, slave, want)
				if !held {
					slave.Close()
				}
				s.Exited()
				waitDrained(t, s)
				wantBytes(t, "terminal", got(), want)
				mustClose(t, s)
			})
		}
	}
}

func TestBackgroundChildThatPrintsForever(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	got := collect(t, path)
	s := open(t, terminalConfig(t, "", path))
	slave := startTerminal(t, s, true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := slave.Write(bytes.Repeat([]byte("y"), 1024)); err != nil {
				return
			}
		}
	}()
	s.Exited()
	waitDrained(t, s)
	got() // EOF, although the child goes on
	mustClose(t, s)
	// The master is closed, and only now is the child hung up.
	<-done
}

func TestTerminalThatIsReopened(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, terminalConfig(t, "", path))
	r := openClient(t, path, os.O_RDONLY)
	slave := startTerminal(t, s, true)
	write(t, slave, []byte("one"))
	wantBytes(t, "before", readN(t, r, 3), []byte("one"))
	var n int
	if err := withFd(s.term.master.conn, func(fd uintptr) (err error) {
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slave.Close() // the master reads EIO from here on
	again, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	write(t, again, []byte("two"))
	wantBytes(t, "after", readN(t, r, 3), []byte("two"))
	s.Exited()
	mustClose(t, s)
}

func TestTerminalInputAndItsEnd(t *testing.T) {
	for _, typed := range []string{"", "a line\n", "half a line", "ended\x04"} {
		t.Run(strings.TrimSpace(typed), func(t *testing.T) {
			checkLeaks(t)
			stdin := mkfifo(t)
			s := open(t, terminalConfig(t, stdin, ""))
			client := openClient(t, stdin, os.O_WRONLY)
			slave := startTerminal(t, s, false)
			got := readAll(t, slave)
			write(t, client, []byte(typed))
			client.Close()
			for range 2 {
				if err := s.CloseStdin(); err != nil {
					t.Fatal(err)
				}
			}
			wantBytes(t, "terminal", got(), []byte(strings.TrimSuffix(typed, "\x04")))
		})
	}
}

func TestTerminalInputFromAFile(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte("a line\nand a half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, terminalConfig(t, path, ""))
	slave := startTerminal(t, s, false)
	wantBytes(t, "terminal", readAll(t, slave)(), []byte("a line\nand a half"))
}

func TestCloseStdinOfATerminalWithoutInput(t *testing.T) {
	checkLeaks(t)
	s := open(t, terminalConfig(t, "", ""))
	slave := startTerminal(t, s, false)
	got := readAll(t, slave)
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "terminal", got(), nil)
	mustClose(t, s)
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
}

func TestTerminalSize(t *testing.T) {
	size := func(f *os.File) task.ConsoleSize {
		ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			t.Fatal(err)
		}
		return task.ConsoleSize{Width: ws.Col, Height: ws.Row}
	}
	for name, c := range map[string]struct {
		config, early, want task.ConsoleSize
	}{
		"left alone":      {},
		"from the config": {config: task.ConsoleSize{Width: 81, Height: 25}, want: task.ConsoleSize{Width: 81, Height: 25}},
		"set before the start": {
			config: task.ConsoleSize{Width: 81, Height: 25},
			early:  task.ConsoleSize{Width: 99, Height: 33}, want: task.ConsoleSize{Width: 99, Height: 33},
		},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			cfg := terminalConfig(t, "", "")
			cfg.Stdio.Size = c.config
			s := open(t, cfg)
			if c.early != (task.ConsoleSize{}) {
				if err := s.Resize(c.early); err != nil {
					t.Fatal(err)
				}
			}
			slave := startTerminal(t, s, false)
			if got := size(slave); got != c.want {
				t.Fatalf("size %v, want %v", got, c.want)
			}
			want := task.ConsoleSize{Width: 120, Height: 40}
			if err := s.Resize(want); err != nil {
				t.Fatal(err)
			}
			if got := size(slave); got != want {
				t.Fatalf("size %v, want %v", got, want)
			}
			mustClose(t, s)
			if err := s.Resize(want); err == nil {
				t.Fatal("a closed terminal was resized")
			}
		})
	}
	if err := open(t, Config{}).Resize(task.ConsoleSize{Width: 1, Height: 1}); err != nil {
		t.Fatalf("without a terminal: %v", err)
	}
}

func TestConsoleSocketIsPrivateAndShort(t *testing.T) {
	checkLeaks(t)
	cfg := terminalConfig(t, "", "")
	cfg.Dir = filepath.Join(cfg.Dir, strings.Repeat("long", 30))
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	dir := filepath.Dir(s.ConsoleSocket())
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o700 || len(s.ConsoleSocket()) > 100 {
		t.Fatalf("%s has mode %o", s.ConsoleSocket(), st.Mode().Perm())
	}
	mustClose(t, s)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is left: %v", dir, err)
	}
}

func TestRuntimeThatDeliversNoTerminal(t *testing.T) {
	for name, c := range map[string]struct {
		send func(t *testing.T, socket string)
		want string
	}{
		"nothing":   {func(*testing.T, string) {}, context.DeadlineExceeded.Error()},
		"a message": {func(t *testing.T, socket string) { deliver(t, socket) }, "0 descriptors"},
		"a pipe": {func(t *testing.T, socket string) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			deliver(t, socket, r)
		}, "not the master of a pty"},
		"the slave": {func(t *testing.T, socket string) {
			master, slave := openPty(t, false)
			deliver(t, socket, slave)
			master.Close()
		}, "not the master of a pty"},
		"two": {func(t *testing.T, socket string) {
			master, slave := openPty(t, false)
			deliver(t, socket, master, slave)
			master.Close()
			slave.Close()
		}, "2 descriptors"},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			s := open(t, terminalConfig(t, "", mkfifo(t)))
			c.send(t, s.ConsoleSocket())
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			if err := s.Started(ctx); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %s", err, c.want)
			}
			// Nothing is waited for: no output will come.
			mustClose(t, s)
		})
	}
}

func TestShellOnATerminal(t *testing.T) {
	checkLeaks(t)
	stdin, stdout := mkfifo(t), mkfifo(t)
	cfg := terminalConfig(t, stdin, stdout)
	cfg.Stdio.Size = task.ConsoleSize{Width: 91, Height: 31}
	s := open(t, cfg)
	got := collect(t, stdout)
	client := openClient(t, stdin, os.O_WRONLY)
	master, slave := openPty(t, false)
	deliver(t, s.ConsoleSocket(), master)
	master.Close()
	cmd := exec.Command("/bin/busybox", "sh", "-c", `test -t 0 && stty size; read line; echo "got $line"; exit 3`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.Started(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	write(t, client, []byte("hello\n"))
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatal(err)
	}
	s.Exited()
	out := string(got())
	if !strings.Contains(out, "31 91\r\n") || !strings.HasSuffix(out, "got hello\r\n") {
		t.Fatalf("%q", out)
	}
	mustClose(t, s)
}

func TestTerminalWithASlowClientIsBoundedByClose(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, terminalConfig(t, "", path))
	r := openClient(t, path, os.O_RDONLY) // reads nothing
	slave := startTerminal(t, s, true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = slave.Write(bytes.Repeat([]byte("z"), 1<<20))
	}()
	eventually(t, "the FIFO is full", func() (full bool) {
		if err := withFd(s.term.sink.w.conn, func(fd uintptr) error {
			full = !ready(fd, unix.POLLOUT)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return full
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err == nil {
		t.Fatal("Close says nothing of the output that it cut off")
	}
	<-done
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
}

func TestCloseEndsTheWaitForATerminal(t *testing.T) {
	checkLeaks(t)
	s := open(t, terminalConfig(t, mkfifo(t), mkfifo(t)))
	done := make(chan error, 1)
	go func() { done <- s.Started(context.Background()) }()
	mustClose(t, s)
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("Started has no terminal and says nothing")
		}
	case <-time.After(patience):
		t.Fatal("Started still waits")
	}
}
