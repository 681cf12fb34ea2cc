package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// teardownGrace is how long Close waits for movers after it has closed their
// files. Only a write to a file system that hangs takes that long.
const teardownGrace = 5 * time.Second

func (s *Streams) openTerminal(cfg Config) error {
	if err := s.openInput(cfg); err != nil {
		return err
	}
	spec, err := findLogger(cfg.Stdio)
	if err != nil {
		return err
	}
	s.term = &terminal{}
	if spec != nil {
		err = s.openLogger(spec, cfg)
	} else {
		s.term.sink, err = s.openSink(outputNames[0], cfg.Stdio.Stdout, true)
	}
	if err != nil {
		return err
	}
	if s.console, err = listenConsole(cfg.Dir); err != nil {
		return err
	}
	return s.fillWithNull()
}

// RuntimeFiles returns what the container gets as descriptors 0, 1 and 2: its ends of the
// pipes, or the null device. stdout and stderr are the same file when both go
// to one place. They stay the streams' own and are valid until Started or
// Close; after that they are nil.
func (s *Streams) RuntimeFiles() (stdin, stdout, stderr *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runtime[0], s.runtime[1], s.runtime[2]
}

// ConsoleSocket is the path at which the runtime must deliver the terminal.
// Empty without one.
func (s *Streams) ConsoleSocket() string {
	if s.console == nil {
		return ""
	}
	return s.console.path
}

// Started says that the runtime has made the process. It closes our copies of
// the container's ends, takes over the terminal, sets its size, and begins to
// move bytes. It is called once; after an error only Close may follow.
func (s *Streams) Started(ctx context.Context) error {
	s.mu.Lock()
	if s.phase != phaseOpen {
		s.mu.Unlock()
		return fmt.Errorf("streams are started or closed already: %w", errdefs.ErrFailedPrecondition)
	}
	s.closeRuntimeFilesLocked()
	s.mu.Unlock()
	var master *os.File
	if s.term != nil {
		var err error
		if master, err = s.console.receive(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != phaseOpen {
		if master != nil {
			_ = master.Close()
		}
		return fmt.Errorf("streams were closed: %w", errdefs.ErrFailedPrecondition)
	}
	if master != nil {
		if err := s.setMasterLocked(s.holder.hold(keptPty, master)); err != nil {
			return err
		}
	}
	s.runLocked()
	return nil
}

// setMasterLocked takes the terminal and does to it what was asked for before
// it was there.
func (s *Streams) setMasterLocked(master *heldFile) error {
	s.term.master = master
	if s.term.exited.Load() {
		s.term.exit()
	}
	if s.size == (task.ConsoleSize{}) {
		return nil
	}
	return s.term.resize(s.size)
}

// runLocked starts a goroutine for each stream.
func (s *Streams) runLocked() {
	s.phase = phaseRunning
	if s.left == 0 {
		close(s.drained)
	}
	for _, o := range s.outs {
		s.wg.Go(func() { o.run(s) })
	}
	if s.term != nil {
		s.wg.Go(func() { s.term.run(s) })
	}
	if s.logger != nil {
		s.wg.Go(func() { s.logger.run(s) })
	}
	switch {
	case s.in == nil:
	case s.term != nil:
		s.wg.Go(func() { s.term.runInput(s.in) })
	default:
		s.wg.Go(s.in.run)
	}
}

func (s *Streams) closeRuntimeFilesLocked() {
	for i, f := range s.runtime {
		if f != nil {
			_ = f.Close()
		}
		s.runtime[i] = nil
	}
}

// outputEnded is called once by each output when it has moved everything.
func (s *Streams) outputEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left--
	if s.left == 0 {
		close(s.drained)
	}
}

// Resize sets the size of the terminal. A size that is set before Started
// takes effect there. Without a terminal it does nothing.
func (s *Streams) Resize(size task.ConsoleSize) error {
	if s.term == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == phaseOpen {
		s.size = size
		return nil
	}
	if s.term.master == nil {
		return fmt.Errorf("resize the terminal: it is closed: %w", errdefs.ErrNotFound)
	}
	return s.term.resize(size)
}

// CloseStdin lets the process see the end of its input when the client's
// writers are gone too; on a terminal the end-of-file character is sent then.
// It is idempotent.
func (s *Streams) CloseStdin() error {
	if s.in != nil {
		s.in.hold.close()
		return nil
	}
	if s.term == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term.master == nil {
		return nil
	}
	// Nobody else writes to this terminal, so there is room.
	if err := s.term.sendEOF(0); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close stdin of the terminal: %w", err)
	}
	return nil
}

// Exited says that the process has ended. The output of a terminal ends when
// all that was written until now is copied, whoever holds the terminal. Pipes
// end when their last writer is gone: Close bounds that.
func (s *Streams) Exited() {
	if s.term == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term.exit()
}

// Drained is closed when every output has ended and all its bytes are with the
// client: in its FIFO or file; at the latest, by Close.
func (s *Streams) Drained() <-chan struct{} { return s.drained }

// Close says that the process is gone, waits until the outputs are drained or
// ctx ends, and frees everything. Where output was cut off it says so in its
// error; everything is freed all the same. Calls after the first wait for it and return
// the same.
func (s *Streams) Close(ctx context.Context) error {
	s.Exited()
	s.mu.Lock()
	before := s.phase
	s.phase = phaseClosed
	s.closeRuntimeFilesLocked()
	s.mu.Unlock()
	if before == phaseClosed {
		<-s.closed
		return s.closeErr
	}
	defer close(s.closed)
	if before == phaseOpen {
		s.neverStarted()
	}
	select {
	case <-s.drained:
	case <-ctx.Done():
		s.closeErr = s.cut()
	}
	if s.logger != nil {
		s.closeErr = errors.Join(s.closeErr, s.logger.close())
	}
	s.closeErr = errors.Join(s.closeErr, s.tearDown())
	return s.closeErr
}

// neverStarted ends what Open has begun: no mover will.
func (s *Streams) neverStarted() {
	if s.logger == nil {
		close(s.drained)
		return
	}
	s.mu.Lock()
	s.left = 1
	s.mu.Unlock()
	s.logger.end()
	s.wg.Go(func() { s.logger.run(s) })
}

// cut says which output is lost by closing now.
func (s *Streams) cut() error {
	select {
	case <-s.drained:
		return nil
	default:
	}
	var errs []error
	for _, o := range s.outs {
		errs = append(errs, o.cut())
	}
	if s.term != nil {
		errs = append(errs, errors.New("the terminal was closed before the client took all of its output"))
	}
	return errors.Join(errs...)
}

func (s *Streams) tearDown() error {
	close(s.closing)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.closeFiles()
		s.wg.Wait()
		for _, k := range s.sinks() {
			k.release()
		}
		s.watch.close()
	}()
	var err error
	if s.console != nil {
		err = s.console.close()
	}
	grace := time.NewTimer(teardownGrace)
	defer grace.Stop()
	select {
	case <-done:
		return err
	case <-grace.C:
		return errors.Join(err, fmt.Errorf("a write to the streams' destination hangs; its goroutine is left behind: %w", context.DeadlineExceeded))
	}
}

// sinks are all that Close has to close.
func (s *Streams) sinks() []*sink {
	var sinks []*sink
	for _, o := range s.outs {
		sinks = append(sinks, o.sink)
	}
	if s.term != nil && s.term.sink != nil {
		sinks = append(sinks, s.term.sink)
	}
	return sinks
}

// closeFiles closes destinations before sources: a mover that waits for room
// has its source in use, and closing a file waits for its users.
func (s *Streams) closeFiles() {
	for _, k := range s.sinks() {
		k.close()
	}
	if s.term != nil {
		s.term.master.close()
	}
	if s.in != nil {
		s.in.close()
	}
	for _, o := range s.outs {
		o.pipe.close()
	}
}
