package stdio

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// run keeps the logger running until the outputs have ended and it has ended
// after them, or until it is stopped.
func (l *logger) run(s *Streams) {
	defer close(l.done)
	defer s.outputEnded()
	pause := loggerMinPause
	for {
		began := time.Now()
		l.mu.Lock()
		p := l.proc
		l.mu.Unlock()
		if p != nil {
			if !p.wait(-1) {
				return // it could not be killed and was given up
			}
			l.mu.Lock()
			l.proc = nil
			l.mu.Unlock()
			l.report("a logger ended and is started again", p.forget(), s.log)
		}
		if time.Since(began) > loggerMaxPause {
			pause = loggerMinPause
		}
		select {
		case <-l.stop.Done():
			return
		case <-time.After(l.delay(pause)):
		}
		if l.stop.Err() != nil || l.atEnd() {
			return
		}
		pause = min(2*pause, loggerMaxPause)
		if err := l.start(l.stop); err != nil && l.stop.Err() == nil {
			s.log.Warn("a logger cannot be started again", "error", err)
		}
	}
}

// report logs the end of a logger that was not to end.
func (l *logger) report(what, how string, log *slog.Logger) {
	if l.stop.Err() == nil && !l.atEnd() {
		log.Warn(what, "logger", l.spec.path, "stream", l.holder.prefix, "how", how)
	}
}

// delay is no pause where there is nothing to start the logger for.
func (l *logger) delay(pause time.Duration) time.Duration {
	if l.atEnd() {
		return 0
	}
	return pause
}

// atEnd says that the outputs have ended and everything was read.
func (l *logger) atEnd() bool {
	for _, pipe := range l.pipes {
		if pipe == nil {
			continue
		}
		ended := true // also where it is closed
		_ = withFd(pipe.conn, func(fd uintptr) error { ended = atEnd(fd); return nil })
		if !ended {
			return false
		}
	}
	return true
}

// close ends the logger and closes what it has. run is running, or has ended.
func (l *logger) close() error {
	l.end()
	err := l.stopProcess()
	for i, pipe := range l.pipes {
		if pipe == nil {
			continue
		}
		if n := pending(pipe); n > 0 {
			err = errors.Join(err, cutOff(outputNames[i], n))
		}
		pipe.close()
	}
	return err
}

func (l *logger) stopProcess() error {
	for _, step := range []struct {
		sig  unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, loggerGrace}, {unix.SIGKILL, loggerKillTime}} {
		l.mu.Lock()
		if l.proc != nil {
			l.proc.signal(step.sig)
		}
		l.mu.Unlock()
		select {
		case <-l.done:
			return nil
		case <-time.After(step.wait):
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proc != nil {
		l.proc.close()
	}
	return fmt.Errorf("logger %s cannot be killed and is left behind", l.spec.path)
}

// openLogger gives the container pipes that a logger reads, and starts it.
func (s *Streams) openLogger(spec *loggerSpec, cfg Config) error {
	l := newLogger(spec, cfg, s.holder)
	s.logger = l
	if cfg.Stdio.Terminal {
		w, r, err := containerPipe(0, 0, containerWrites)
		if err != nil {
			return err
		}
		l.pipes[0] = s.holder.hold(outputNames[0]+keptPipeSuffix, r)
		ours, err := rewrap(w, "logger") // its other end blocks, this one must not
		_ = w.Close()
		if err != nil {
			return err
		}
		s.term.sink = &sink{kind: toLogger, path: spec.path, log: s.log, w: s.holder.hold(outputNames[0]+keptSinkSuffix, ours)}
		return nil
	}
	for i, name := range outputNames {
		theirs, ours, err := containerPipe(cfg.UID, cfg.GID, containerWrites)
		if err != nil {
			return err
		}
		s.runtime[i+1] = theirs
		l.pipes[i] = s.holder.hold(name+keptPipeSuffix, ours)
	}
	return nil
}

// adoptLogger goes on with a predecessor's logger.
func (a *adoption) adoptLogger(spec *loggerSpec) {
	l := newLogger(spec, a.cfg, a.holder)
	for i, name := range outputNames {
		l.pipes[i] = a.take(name + keptPipeSuffix)
	}
	p := &loggerProcess{pidfd: a.take(keptLogger), errs: a.take(keptLoggerErrs), read: make(chan struct{})}
	switch {
	case l.pipes == [2]*heldFile{}:
		// They had ended, or went down with the keeper.
		p.close()
		return
	case p.pidfd == nil:
		// It was not running when the predecessor died.
		p.close()
	case p.errs == nil:
		close(p.read)
		l.proc = p
	default:
		go p.readErrors()
		l.proc = p
	}
	a.logger = l
}
