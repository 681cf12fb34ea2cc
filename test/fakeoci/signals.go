package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func kill(r *runtime, args []string) error {
	flags := newFlags(r.op)
	all := flags.Bool("all", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if n := flags.NArg(); n != 1 && n != 2 {
		return fmt.Errorf("%q requires a maximum of 2 arguments", r.op)
	}
	if err := r.setID(flags.Arg(0)); err != nil {
		return err
	}
	sig, err := parseSignal(flags.Arg(1))
	if err != nil {
		return err
	}
	return r.do(func() error { return r.signal(sig, *all) })
}

func (r *runtime) signal(sig syscall.Signal, all bool) error {
	c, err := r.load()
	if err != nil {
		return err
	}
	// As with runc, all reaches what init has left behind.
	if all {
		pids, err := r.pids()
		if err != nil {
			return err
		}
		return signalEach(pids, sig)
	}
	if r.status(c) == "stopped" {
		return errNotRunning
	}
	if err := unix.Kill(c.Pid, sig); err != nil {
		return fmt.Errorf("unable to signal init: %w", err)
	}
	return nil
}

func signalEach(pids []int, sig syscall.Signal) error {
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func parseSignal(s string) (syscall.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func pause(r *runtime, args []string) error {
	return r.freeze(args, true, "running", "created")
}

func resume(r *runtime, args []string) error {
	return r.freeze(args, false, "paused")
}

// freeze stops or continues every process. A process that is forked at the same time
// may be missed, hence the second look.
func (r *runtime) freeze(args []string, paused bool, from ...string) error {
	if err := r.onlyID(args); err != nil {
		return err
	}
	return r.do(func() error {
		c, err := r.load()
		if err != nil {
			return err
		}
		now, allowed := r.status(c), false
		for _, s := range from {
			allowed = allowed || s == now
		}
		if !allowed && paused {
			return errNotRunning
		}
		if !allowed {
			return errors.New("container not paused")
		}
		sig := unix.SIGCONT
		if paused {
			sig = unix.SIGSTOP
		}
		for range 2 {
			pids, err := r.pids()
			if err != nil {
				return err
			}
			if err := signalEach(pids, sig); err != nil {
				return err
			}
		}
		c.Paused = paused
		return r.save(c)
	})
}
