package harness

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Shims returns the pids of the shims that serve, oldest first.
func (d *Daemon) Shims() []int {
	return d.find(func(p proc) bool {
		return len(p.args) > 0 && strings.HasPrefix(filepath.Base(p.args[0]), "containerd-shim-") &&
			p.state != "Z" && !isGuard(p) && p.args[len(p.args)-1] != "start" && p.args[len(p.args)-1] != "delete"
	})
}

// Guards returns the pids of the guards of Berth's shims, oldest first.
func (d *Daemon) Guards() []int {
	return d.find(func(p proc) bool { return p.state != "Z" && isGuard(p) })
}

func isGuard(p proc) bool {
	return len(p.args) > 1 && p.args[len(p.args)-1] == "guard"
}

func (d *Daemon) find(match func(proc) bool) []int {
	var pids []int
	for _, p := range d.processes() {
		if match(p) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// KillShim ends the daemon's only shim as kill -9 does and returns its pid.
func (d *Daemon) KillShim(tb testing.TB) int {
	tb.Helper()
	pids := d.Shims()
	if len(pids) != 1 {
		tb.Fatalf("shims of %s: %v, want one", d.Kind, pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
	Await(tb, 5*time.Second, "end of the killed shim", func() bool { return Ended(pids[0]) })
	return pids[0]
}

// Processes describes the processes of the daemon, itself left out.
func (d *Daemon) Processes() []string {
	var found []string
	for _, p := range d.processes() {
		found = append(found, p.String())
	}
	return found
}
