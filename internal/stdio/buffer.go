package stdio

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferSize is what a terminal is copied through. It is small because a shim
// that is killed loses what is in it.
const bufferSize = 4096

// buffers saves the garbage collector work. A stream has a buffer only while
// it has bytes.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

type buffer = *[bufferSize]byte

func getBuffer() buffer { return buffers.Get().(buffer) }

func putBuffer(b buffer) {
	if b != nil {
		buffers.Put(b)
	}
}

// readChunk waits until conn, a pipe, has bytes and reads some. n == 0 without an error
// is the end. The caller puts the buffer back; it may be nil.
func readChunk(conn syscall.RawConn) (b buffer, n int, err error) {
	stopped := conn.Read(func(fd uintptr) bool {
		if !ready(fd, unix.POLLIN) {
			return false
		}
		if b == nil {
			b = getBuffer()
		}
		n, err = readNow(fd, b[:])
		return err != unix.EAGAIN
	})
	if stopped != nil {
		return b, 0, errStopped
	}
	return b, n, err
}

func readNow(fd uintptr, p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
