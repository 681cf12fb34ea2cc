package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// signals is the daemon's ear.
type signals struct {
	// stop gets the first signal that asks for the end.
	stop chan os.Signal

	incoming chan os.Signal
	done     chan struct{}
	running  sync.WaitGroup
}

// listenForSignals hears signals from here on. The caller closes it.
func listenForSignals(log *slog.Logger) *signals {
	s := &signals{stop: make(chan os.Signal, 1), incoming: make(chan os.Signal, 8), done: make(chan struct{})}
	// SIGPIPE is heard, not ignored: a journal that restarts must not end the
	// daemon, and what is ignored would be so in containers too.
	signal.Notify(s.incoming, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGPIPE)
	s.running.Go(func() {
		for {
			select {
			case sig := <-s.incoming:
				s.handle(sig, log)
			case <-s.done:
				return
			}
		}
	})
	return s
}

func (s *signals) handle(sig os.Signal, log *slog.Logger) {
	switch sig {
	case unix.SIGUSR1:
		dumpStacks(log)
	case unix.SIGTERM, unix.SIGINT:
		select {
		case s.stop <- sig:
			// From now on the next one ends the process as if nobody heard it.
			signal.Reset(unix.SIGTERM, unix.SIGINT)
		default:
		}
	}
}

func (s *signals) close() {
	signal.Stop(s.incoming)
	close(s.done)
	s.running.Wait()
}

// dumpStacks writes the stacks of all goroutines beside the log: text of many
// lines is of no use in it.
func dumpStacks(log *slog.Logger) {
	const most = 64 << 20
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) || len(buf) >= most {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	log.Info("stacks of all goroutines follow", slog.Int("bytes", len(buf)))
	if _, err := fmt.Fprintf(os.Stderr, "=== BEGIN goroutine stack dump ===\n%s\n=== END goroutine stack dump ===\n", buf); err != nil {
		log.Warn("stacks could not be written", slog.Any("error", err))
	}
}
