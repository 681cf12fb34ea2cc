package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	own "github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

// A start with runc lets init go by opening its FIFO, and init ends if nobody
// reads it any more when it writes. The shim is killed exactly there: the guard
// reads on, and the next shim finishes the start.
func TestShimKilledInStart(t *testing.T) {
	d := newDaemon(t)
	s, guard := d.guarded()
	r := d.remote(s, v3, "")
	// Init goes on before the next shim comes, or when that has waited in vain.
	for n, kind := range []string{"early", "late", "late and ended"} {
		id := fmt.Sprintf("c%d", n)
		script, status := tasktest.Forever, uint32(137)
		if kind == "late and ended" {
			script, status = "exit 9", 9
		}
		c := r.make(t, id, script, false)
		goOn := r.breakStart(t, c, guard)
		if kind == "early" {
			goOn()
		}
		r.reconnect()
		if kind != "early" {
			if st, err := c.State(ctx(t)); err != nil || st.Status != task.Created {
				t.Errorf("%s: state %+v (%v)", kind, st, err)
			}
			goOn()
		}
		if kind != "late and ended" {
			if st, err := c.State(ctx(t)); err == nil && st.Status == task.Created {
				if _, err := c.Start(ctx(t)); err != nil {
					t.Errorf("%s: the second start: %v", kind, err)
				}
			}
			if err := c.Kill(ctx(t), unix.SIGKILL, true); err != nil {
				t.Error(err)
			}
		}
		if err := r.checkExit(c, id, status); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		await(t, "the end of the guard's reader", func() bool { return !holdsFIFO(guard) })
		await(t, kind+": four events", func() bool { return len(r.Events()) == 4*(n+1) })
	}
	tasktest.CheckEvents(t, r.Events())
}

// breakStart kills the shim when the guard has let init go and init has not
// noticed: it is held until goOn is called.
func (r *remote) breakStart(t *testing.T, c task.Task, guard int) (goOn func()) {
	t.Helper()
	st, err := c.State(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	init := int(st.Pid)
	if err := unix.Kill(init, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, "the stop", func() bool { return processState(init) == "T" })
	broken := make(chan error, 1)
	go func() {
		_, err := c.Start(ctx(t))
		broken <- err
	}()
	await(t, "the guard's reader", func() bool { return holdsFIFO(guard) })
	if err := unix.Kill(r.shim.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-broken; err == nil {
		t.Fatal("the start that was broken off succeeded")
	}
	return func() {
		if err := unix.Kill(init, unix.SIGCONT); err != nil {
			t.Error(err)
		}
	}
}

// At any other moment of a start the container is created or running
// afterwards, never gone.
func TestShimKilledAroundStarts(t *testing.T) {
	d := newDaemon(t)
	s, _ := d.guarded()
	r := d.remote(s, v3, "")
	const kills = 8 // the guard waits twice as long after each
	seen := map[task.Status]int{}
	for n := range kills {
		id := fmt.Sprintf("c%d", n)
		c := r.make(t, id, tasktest.Forever, false)
		broken := make(chan error, 1)
		go func() {
			_, err := c.Start(ctx(t))
			broken <- err
		}()
		time.Sleep(time.Duration(rand.IntN(2500)) * time.Microsecond)
		if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-broken
		r.reconnect()
		st, err := c.State(ctx(t))
		if err != nil || st.Status != task.Created && st.Status != task.Running {
			t.Fatalf("state %+v (%v)", st, err)
		}
		seen[st.Status]++
		if st.Status == task.Created {
			if _, err := c.Start(ctx(t)); err != nil {
				t.Fatalf("the second start: %v", err)
			}
		}
		if _, err := c.Start(ctx(t)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("start of what runs: %v", err)
		}
		if err := c.Kill(ctx(t), unix.SIGKILL, true); err != nil {
			t.Fatal(err)
		}
		if err := r.checkExit(c, id, 137); err != nil {
			t.Error(err)
		}
	}
	t.Logf("after the kills: %v", seen)
	await(t, "the events", func() bool { return len(r.Events()) >= 4*kills })
	tasktest.CheckEvents(t, r.Events())
	if n := len(r.Events()); n != 4*kills {
		t.Errorf("%d events, want %d: %v", n, 4*kills, r.Events())
	}
}

func processState(pid int) string {
	if own.IsZombie(pid) {
		return "Z"
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return rest[:1]
}

// holdsFIFO says whether the process has a container's FIFO open.
func holdsFIFO(pid int) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.Contains(name, "/exec.fifo") {
			return true
		}
	}
	return false
}
