package shim

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

const (
	// hostGrace is how long containers get after the machine's SIGTERM.
	hostGrace = 5 * time.Second
	// hostKill is how long their end is waited for after SIGKILL.
	hostKill = 5 * time.Second
	// askSystemd bounds the question what it is about.
	askSystemd = 2 * time.Second
)

// hostEnds says that systemd shuts the machine down. It ends every process by
// SIGTERM and waits for their end, by default for 90 s: first itself, unit by
// unit, then with its last program as process 1, whose name the kernel cuts.
func hostEnds(ctx context.Context) bool {
	name, err := os.ReadFile("/proc/1/comm")
	switch {
	case err != nil:
		return false
	case strings.TrimSpace(string(name)) == "systemd-shutdow":
		return true
	case strings.TrimSpace(string(name)) != "systemd":
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askSystemd)
	defer cancel()
	systemd, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return false
	}
	defer systemd.Close()
	state, err := systemd.SystemStateContext(ctx)
	return err == nil && state.Value.Value() == "stopping"
}

// endContainers waits for the end of all containers, which have had SIGTERM as
// every process has, and kills those that have not ended after a while: a program
// that is process 1 of its container ignores a signal that it does not handle.
func (s *server) endContainers(ctx context.Context) {
	tasks, err := s.set.List(ctx, "")
	if err != nil {
		s.cfg.Log.Warn("the machine shuts down", "error", err)
	}
	grace, cancel := context.WithTimeout(ctx, hostGrace)
	defer cancel()
	last, cancelLast := context.WithTimeout(ctx, hostGrace+hostKill)
	defer cancelLast()
	var wg sync.WaitGroup
	for _, t := range tasks {
		wg.Go(func() {
			if err := endTask(grace, last, t); err != nil {
				s.cfg.Log.Warn("the machine shuts down and a container goes on", "container", t.ID().Container, "error", err)
			}
		})
	}
	wg.Wait()
}

func endTask(grace, last context.Context, t task.Task) error {
	if _, err := t.Wait(grace); grace.Err() == nil {
		return err
	}
	if err := t.Kill(last, unix.SIGKILL, true); err != nil {
		return err
	}
	_, err := t.Wait(last)
	return err
}
