package stdio

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
	for o.pipe != nil {
		n, err := o.sink.take(o.pipe)
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
