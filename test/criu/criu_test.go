// Package criu saves and restores real containers. CRIU does not work on every
// kernel, so this runs in a machine of scripts/vm alone, where it must.
package criu

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/test/harness"
)

const limit = 2 * time.Minute

// counter counts in its memory, and writes what it has to a file. On USR1 it takes
// memory until the kernel ends it.
const counter = `trap 'x=a; while :; do x=$x$x; done' USR1
i=0
while :; do i=$((i+1)); echo $i >/n; sleep 0.1; done`

// count reads how far a container has counted.
func count(t *testing.T, d *harness.Daemon, id string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(d.Berth(t, "exec", id, "cat", "/n").Stdout))
	if err != nil {
		return 0 // the file is written this moment
	}
	return n
}

func awaitCount(t *testing.T, d *harness.Daemon, id string, n int) {
	t.Helper()
	harness.Await(t, limit, id+" counts", func() bool { return count(t, d, id) >= n })
}

func run(t *testing.T, d *harness.Daemon, id string, flags ...string) {
	t.Helper()
	d.MustBerth(t, append(append([]string{"run", "-d", "--name", id}, flags...), harness.Image, "sh", "-c", counter)...)
}

// memoryMax reads the limit of a process's cgroup, which is v2.
func memoryMax(t *testing.T, pid int) string {
	t.Helper()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	limit, err := os.ReadFile("/sys/fs/cgroup" + strings.TrimSpace(strings.TrimPrefix(string(groups), "0::")) + "/memory.max")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(limit))
}

// What was saved goes on, under another name, as a container like any other: with
// a cgroup, statistics, limits that can be changed, signals and an exact exit.
func TestRestoreElsewhere(t *testing.T) {
	d := harness.Start(t, harness.Config{})
	from, to := d.ID("from"), d.ID("to")
	run(t, d, from, "--memory", "64m")
	awaitCount(t, d, from, 10)
	d.MustBerth(t, "checkpoint", "--image", from, "berth.test/saved:1")
	saved := count(t, d, from)
	if saved == 0 {
		saved = 10
	}
	awaitCount(t, d, from, saved+1) // it goes on
	mustRestore(t, d, "--live", to, "berth.test/saved:1")
	awaitCount(t, d, to, 10)
	if n := count(t, d, to); n == 0 {
		awaitCount(t, d, to, 10)
	}

	if pid := d.TaskPID(t, to); pid <= 0 {
		t.Errorf("its pid is %d", pid)
	}
	if top := d.MustBerth(t, "top", to); !strings.Contains(top, "sh") {
		t.Errorf("its processes: %s", top)
	}
	stats := d.MustCtr(t, "tasks", "metrics", to)
	if !strings.Contains(stats, "memory.usage") || !strings.Contains(stats, "pids.current") {
		t.Errorf("its statistics: %s", stats)
	}
	d.MustBerth(t, "update", "--memory", "48m", to)
	if got := memoryMax(t, d.TaskPID(t, to)); got != strconv.Itoa(48<<20) {
		t.Errorf("memory.max is %q after the update", got)
	}
	d.MustBerth(t, "pause", to)
	d.MustBerth(t, "unpause", to)
	d.MustBerth(t, "kill", "-s", "KILL", to)
	if code := strings.TrimSpace(d.MustBerth(t, "wait", to)); code != "137" {
		t.Errorf("it ended with %s", code)
	}
	d.MustBerth(t, "rm", to)
	d.MustBerth(t, "rm", "-f", from)
	d.MustBerth(t, "rmi", "berth.test/saved:1")
}

// What it wrote to its file system comes along with what it has in memory: a
// command that was run anew would count from 1.
func TestRestoreFiles(t *testing.T) {
	d := harness.Start(t, harness.Config{})
	from, to := d.ID("from"), d.ID("to")
	run(t, d, from)
	awaitCount(t, d, from, 20)
	d.MustBerth(t, "exec", from, "touch", "/written")
	d.MustBerth(t, "checkpoint", "--rw", "--exit", from, "berth.test/files:1")
	d.MustBerth(t, "rm", "-f", from)
	mustRestore(t, d, "--live", "--rw", to, "berth.test/files:1")
	d.MustBerth(t, "exec", to, "test", "-e", "/written")
	n := 0
	harness.Await(t, limit, "a number", func() bool { n = count(t, d, to); return n > 0 })
	if n < 20 {
		t.Errorf("it counts from %d", n)
	}
	d.MustBerth(t, "rm", "-f", to)
	d.MustBerth(t, "rmi", "berth.test/files:1")
}

// A restored container that has no memory left is seen to end so.
func TestRestoredOOM(t *testing.T) {
	d := harness.Start(t, harness.Config{})
	id := d.ID("oom")
	run(t, d, id, "--memory", "32m")
	awaitCount(t, d, id, 10)
	dump := t.TempDir()
	d.MustBerth(t, "checkpoint", "--exit", "--image-path", dump, id)
	d.MustBerth(t, "wait", id)
	mustRestore(t, d, "--image-path", dump, id)
	awaitCount(t, d, id, 11)
	d.MustBerth(t, "kill", "-s", "USR1", id)
	if code := strings.TrimSpace(d.MustBerth(t, "wait", id)); code != "137" {
		t.Errorf("it ended with %s", code)
	}
	var kinds []task.EventKind
	harness.Await(t, limit, "its exit is told", func() bool {
		kinds = kinds[:0]
		for _, e := range d.Events() {
			if e.ID.Container == id && e.ExecID == "" && (e.Kind == task.EventOOM || e.Kind == task.EventExit) {
				kinds = append(kinds, e.Kind)
			}
		}
		return slices.Contains(kinds, task.EventOOM) && kinds[len(kinds)-1] == task.EventExit
	})
	d.MustBerth(t, "rm", id)
}

// A checkpoint that CRIU cannot make says why, and the container goes on.
func TestCheckpointFails(t *testing.T) {
	d := harness.Start(t, harness.Config{})
	id := d.ID("connected")
	const connection = `(sleep 10000 | nc -l -p 999 >/dev/null) &
until grep -q ':03E7 [0-9A-F:]* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
(sleep 10000 | nc 127.0.0.1 999 >/dev/null) &
until grep -q ':03E7 01 ' /proc/net/tcp; do sleep 0.1; done
`
	d.MustBerth(t, "run", "-d", "--name", id, harness.Image, "sh", "-c", connection+counter)
	awaitCount(t, d, id, 5)
	r := d.Berth(t, "checkpoint", id, "berth.test/never:1")
	if r.Code == 0 || !strings.Contains(r.Stderr, "criu failed") || !strings.Contains(r.Stderr, "tcp-established") || !strings.Contains(r.Stderr, "(log: ") {
		t.Errorf("without --tcp-established: %s", r)
	}
	awaitCount(t, d, id, count(t, d, id)+1)
	if out := d.MustBerth(t, "images", "-q"); strings.Contains(out, "never") {
		t.Errorf("an image of it is there: %s", out)
	}
	d.MustBerth(t, "rm", "-f", id)
}

// mustRestore shows CRIU's log when a restore fails.
func mustRestore(t *testing.T, d *harness.Daemon, args ...string) {
	t.Helper()
	r := d.Berth(t, append([]string{"restore"}, args...)...)
	if r.Code == 0 {
		return
	}
	if _, name, ok := strings.Cut(r.Stderr, "(log: "); ok {
		name, _, _ = strings.Cut(name, ")")
		if log, err := os.ReadFile(name); err == nil {
			t.Logf("%s", log[max(0, len(log)-4000):])
		}
	}
	t.Fatal(r)
}
