package harness

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// CheckLeft is the leak check for an engine that is not a Daemon's: mounts below
// dir, processes that have dir in their arguments, and cgroups of the namespace.
// It takes away the namespace's own cgroup, which runc leaves.
func CheckLeft(tb testing.TB, dir, namespace string) {
	tb.Helper()
	d := &Daemon{Dir: dir, Namespace: namespace}
	var left []string
	Poll(time.Minute, func() bool {
		left = append(prefixed("mount ", d.mounts()), prefixed("cgroup ", d.cgroups())...)
		pids, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
		for _, path := range pids {
			if p := readProc(pidOf(path)); strings.Contains(strings.Join(p.args, " "), dir) {
				left = append(left, "process "+p.String())
			}
		}
		return len(left) == 0
	})
	if len(left) > 0 {
		tb.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
	for _, path := range d.namespaceCgroups() {
		if err := removeCgroup(path); err != nil {
			tb.Error(err)
		}
	}
}

func pidOf(path string) int {
	pid, _ := strconv.Atoi(filepath.Base(path)) // digits alone
	return pid
}
