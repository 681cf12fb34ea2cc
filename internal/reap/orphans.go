package reap

import (
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Hold keeps orphans from being swept until release is called. Hold while a
// child of os/exec may end, and from a runtime call until the process that it
// made is watched: the sweep cannot tell such children from orphans.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	r.holds++
	r.mu.Unlock()
	released := false
	return func() {
		if released {
			return
		}
		released = true
		r.mu.Lock()
		r.holds--
		again := r.holds == 0 && r.dirty
		if again {
			r.dirty = false
		}
		r.mu.Unlock()
		if again {
			r.poke()
		}
	}
}

func (r *Reaper) poke() {
	select {
	case r.sweepC <- struct{}{}:
	default:
	}
}

// sweeper reaps orphans that nobody watches: what containers without a pid
// namespace of their own leave behind. SIGCHLD says that there may be some.
func (r *Reaper) sweeper() {
	defer r.wg.Done()
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, unix.SIGCHLD)
	defer signal.Stop(sig)
	for {
		select {
		case <-r.done:
			return
		case <-sig:
		case <-r.sweepC:
		}
		r.sweep()
	}
}

func (r *Reaper) sweep() {
	for _, pid := range Children() {
		if !IsZombie(pid) {
			continue
		}
		r.mu.Lock()
		// Reaping under the lock: a Hold taken now must find either no zombie
		// or one that is still there.
		if r.holds > 0 {
			r.dirty = true
			r.mu.Unlock()
			return
		}
		if r.pids[pid] == 0 {
			CollectChild(pid)
		}
		r.mu.Unlock()
	}
}

// Children lists the children of this process, of all its threads
// (CONFIG_PROC_CHILDREN).
func Children() []int {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return nil
	}
	defer dir.Close()
	threads, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var pids []int
	for _, thread := range threads {
		data, err := os.ReadFile("/proc/self/task/" + thread + "/children")
		if err != nil {
			continue // the thread ended
		}
		for _, s := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// IsZombie says that the process has ended and waits to be reaped.
func IsZombie(pid int) bool {
	f, err := statFields(pid)
	return err == nil && len(f) > 0 && len(f[0]) == 1 && f[0][0] == 'Z'
}
