package shim

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxStacks  = 1 << 20
	stacksTime = time.Second
)

// tellStacks writes the stacks of all goroutines to standard error at each
// SIGUSR1, as stock shims do, until the function that it returns is called.
func tellStacks(log *slog.Logger) (stop func()) {
	asked, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(asked, unix.SIGUSR1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-asked:
				log.Info("stacks of all goroutines follow", "goroutines", runtime.NumGoroutine())
				if err := writeStacks(unix.Stderr); err != nil {
					log.Warn("stacks could not be written whole", "error", err)
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(asked)
		close(done)
		wg.Wait()
	}
}

// writeStacks writes to a descriptor that may be a full FIFO, whose reader gets
// a second to take it.
func writeStacks(fd int) error {
	buf := make([]byte, maxStacks)
	buf = buf[:runtime.Stack(buf, true)]
	for end := time.Now().Add(stacksTime); len(buf) > 0; {
		n, err := unix.Write(fd, buf[:min(len(buf), 4096)])
		if n > 0 {
			buf = buf[n:]
		}
		if errors.Is(err, unix.EAGAIN) && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}
