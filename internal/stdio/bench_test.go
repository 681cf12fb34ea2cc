package stdio

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// benchChunk is what the container writes at once, as yes(1) and cp(1) do.
const benchChunk = 64 << 10

// BenchmarkOutput moves 1 GiB an operation from a container's pipe to a client
// that reads a FIFO.
func BenchmarkOutput(b *testing.B) {
	b.Run("splice", func(b *testing.B) {
		path := mkfifo(b)
		s := open(b, fifoConfig(path))
		r := openClient(b, path, os.O_RDONLY)
		c := start(b, s)
		pump(b, c.out, r)
		c.exit()
		mustClose(b, s)
	})
	b.Run("plain pipe", func(b *testing.B) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			b.Fatal(err)
		}
		r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
		defer r.Close()
		pump(b, w, r)
		w.Close()
	})
	b.Run("copy of 4 KiB", func(b *testing.B) {
		path := mkfifo(b)
		theirs, ours, err := containerPipe(0, 0, containerWrites)
		if err != nil {
			b.Fatal(err)
		}
		to, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		r := openClient(b, path, os.O_RDONLY)
		done := make(chan struct{})
		go func() {
			defer close(done)
			// Hidden behind plain interfaces, as the copier of a shim has them:
			// io.Copy would splice by itself.
			_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{ours}, make([]byte, 4096))
		}()
		pump(b, theirs, r)
		theirs.Close()
		<-done
		ours.Close()
		to.Close()
	})
}

// pump writes 1 GiB into w and reads it from r, as often as b wants.
func pump(b *testing.B, w, r *os.File) {
	b.Helper()
	const size = 1 << 30
	chunk, sink := pattern(benchChunk), make([]byte, benchChunk)
	b.SetBytes(size)
	for b.Loop() {
		go func() {
			for range size / benchChunk {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}()
		for n := 0; n < size; {
			m, err := r.Read(sink)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
}
