package soak

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// sample is what a process has at a quiet moment.
type sample struct {
	private    int // KiB that no other process shares
	fds        int
	threads    int
	goroutines int // 0: it does not tell
}

func (s sample) String() string {
	return fmt.Sprintf("%6d KiB private, %3d fds, %2d threads, %3d goroutines", s.private, s.fds, s.threads, s.goroutines)
}

var privateLine = regexp.MustCompile(`(?m)^Private_(?:Clean|Dirty): +([0-9]+) kB$`)

func private(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, m := range privateLine.FindAllSubmatch(data, -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func entries(t *testing.T, pid int, dir string) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// measure takes a sample of a process that has had nothing to do for a while: it
// waits until its memory stays as it is for longer than the shim's trim takes, but
// not for ever: the kernel of a busy machine takes pages and gives them back.
func measure(t *testing.T, pid int) sample {
	t.Helper()
	last, since := private(t, pid), time.Now()
	harness.Poll(20*time.Second, func() bool {
		if now := private(t, pid); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 4*time.Second
	})
	return sample{private: last, fds: entries(t, pid, "fd"), threads: entries(t, pid, "task")}
}

var goroutinesField = regexp.MustCompile(`stacks of all goroutines follow.*goroutines=([0-9]+)`)

// goroutines asks the shim for its stacks and reads their number in the daemon's log.
func goroutines(t *testing.T, d *harness.Daemon, shim int) int {
	t.Helper()
	log := filepath.Join(d.Dir, "daemon.log")
	told := func() [][][]byte {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return goroutinesField.FindAllSubmatch(data, -1)
	}
	before := len(told())
	if err := syscall.Kill(shim, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var got [][][]byte
	harness.Await(t, time.Minute, "stacks in the log", func() bool { got = told(); return len(got) > before })
	n, err := strconv.Atoi(string(got[len(got)-1][1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var switches = regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\t([0-9]+)$`)

// wakeups counts how often the threads of a process have slept and woken so far.
func wakeups(t *testing.T, pid int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v, %v", pid, files, err)
	}
	sum := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := switches.FindSubmatch(bytes.TrimSpace(data))
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
