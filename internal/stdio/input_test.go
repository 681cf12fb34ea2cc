package stdio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

func stdinConfig(path string) Config { return Config{Stdio: task.Stdio{Stdin: path}} }

// readAll reads the container's stdin to its end, in the background.
func readAll(t *testing.T, f *os.File) func() []byte {
	t.Helper()
	c := make(chan []byte, 1)
	go func() {
		b, err := io.ReadAll(f)
		if err != nil {
			t.Error(err)
		}
		c <- b
	}()
	return func() []byte {
		t.Helper()
		var b []byte
		eventually(t, "EOF of the container's stdin", func() bool {
			select {
			case b = <-c:
				return true
			default:
				return false
			}
		})
		return b
	}
}

func TestInputOfEverySizeArrives(t *testing.T) {
	for _, n := range []int{0, 1, 4097, 65536, 65537, 1 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			checkLeaks(t)
			path := mkfifo(t)
			s := open(t, stdinConfig(path))
			client := openClient(t, path, os.O_WRONLY)
			c := start(t, s)
			got := readAll(t, c.in)
			want := pattern(n)
			write(t, client, want)
			client.Close()
			if err := s.CloseStdin(); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, "stdin", got(), want)
		})
	}
}

func TestDetachingClientIsNoEndOfInput(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, stdinConfig(path))
	c := start(t, s)
	for _, text := range []string{"one", "two"} {
		client := openClient(t, path, os.O_WRONLY)
		write(t, client, []byte(text))
		client.Close()
		wantBytes(t, "stdin", readN(t, c.in, 3), []byte(text))
	}
	got := readAll(t, c.in)
	for range 2 { // idempotent
		if err := s.CloseStdin(); err != nil {
			t.Fatal(err)
		}
	}
	wantBytes(t, "rest", got(), nil)
}

func TestCloseStdinWaitsForTheClientsWriters(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, stdinConfig(path))
	client := openClient(t, path, os.O_WRONLY)
	// Before Started, as clients do that have no input at all.
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	c := start(t, s)
	got := readAll(t, c.in)
	write(t, client, []byte("late"))
	client.Close()
	wantBytes(t, "stdin", got(), []byte("late"))
}

func TestContainerThatClosedItsInput(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	log := &logBuffer{}
	cfg := stdinConfig(path)
	cfg.Log = log.logger()
	s := open(t, cfg)
	client := openClient(t, path, os.O_WRONLY)
	c := start(t, s)
	c.in.Close()
	// The client learns it, as in a pipeline.
	eventually(t, "EPIPE", func() bool {
		_, err := client.Write([]byte("x"))
		return errors.Is(err, unix.EPIPE)
	})
	mustClose(t, s)
	if log.String() != "" {
		t.Fatalf("logged: %s", log)
	}
}

func TestInputFromAFile(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "in")
	want := pattern(200000)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, stdinConfig("file://"+path))
	c := start(t, s)
	wantBytes(t, "stdin", readAll(t, c.in)(), want)
}

func TestCloseWhileTheContainerDoesNotRead(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	s := open(t, stdinConfig(path))
	client := openClient(t, path, os.O_WRONLY)
	start(t, s)
	wrote := make(chan error, 1)
	go func() {
		_, err := client.Write(pattern(1 << 20))
		wrote <- err
	}()
	eventually(t, "the container's pipe is full", func() bool { return pending(s.in.pipe) == 65536 })
	mustClose(t, s)
	if err := <-wrote; !errors.Is(err, unix.EPIPE) {
		t.Fatalf("client: %v", err)
	}
}
