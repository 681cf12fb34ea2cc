package stdio

import "golang.org/x/sys/unix"

// outputNames are the outputs in the order of their descriptors, from 1.
var outputNames = [...]string{"stdout", "stderr"}

// output is a stream from a pipe of the container to the client.
type output struct {
	name string
	pipe *heldFile // our end; nil once a predecessor has emptied it
	sink *sink
}

// run moves the container's bytes until its last writer is gone, or the sink
// or the pipe is closed.
func (o *output) run(s *Streams) {
	full := 0
	for o.pipe != nil {
		n, err := o.sink.take(o.pipe)
		if n >= pipeSize {
			if full++; full == fullPipes {
				o.widen()
			}
		}
		if err == errStopped {
			break
		}
		if err != nil {
			s.log.Warn("output ended early", "stream", o.pipe.name, "error", err)
			break
		}
		if n == 0 {
			break
		}
	}
	o.pipe.close()
	s.outputEnded()
	o.sink.finish(&s.watch, s.closing)
}

const (
	// pipeSize is the size of a new pipe.
	pipeSize = 64 << 10
	// A container that fills its pipe this often gets a wide one: most of what moving
	// costs then is one process waking the other.
	fullPipes = 16
	widePipe  = 1 << 20
)

// widen makes the pipe and the FIFO larger. Where the kernel refuses they work as they are:
// the limit for a user's pipes is reached.
func (o *output) widen() {
	for _, f := range []*heldFile{o.pipe, o.sink.w} {
		if f != nil && (f == o.pipe || o.sink.kind == toFIFO) {
			_ = withFd(f.conn, func(fd uintptr) error {
				if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err != nil || size >= widePipe {
					return err
				}
				_, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, widePipe)
				return err
			})
		}
	}
}

// cut says what an output loses when it is closed now; nil for nothing.
func (o *output) cut() error {
	if o.pipe == nil {
		return nil
	}
	if n := pending(o.pipe); n > 0 {
		return cutOff(o.name, n)
	}
	return nil
}
