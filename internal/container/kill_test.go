package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

// A signal to all reaches init, execs and the children of both, also in a
// container that is paused, which stays paused.
func TestKillAllReachesEveryProcess(t *testing.T) {
	for _, paused := range []bool{false, true} {
		t.Run(fmt.Sprintf("paused=%t", paused), func(t *testing.T) {
			h := newHarness(t, lookPath(t, "runc"), true)
			ctx := testContext(t)
			c := h.make(t, "c", "trap : USR1; sleep 1000 & sleep 1000 & while :; do wait; done", true)
			exec, err := c.Exec(ctx, "e", h.Exec(t, "sleep 1000 & exec sleep 1000"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := exec.Start(ctx); err != nil {
				t.Fatal(err)
			}
			running := func() int {
				pids, err := c.Pids(ctx)
				if err != nil {
					t.Fatal(err)
				}
				return len(pids)
			}
			waitUntil(t, func() bool { return running() == 5 })
			if paused {
				if err := c.Pause(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Kill(ctx, syscall.SIGUSR1, true); err != nil {
				t.Fatal(err)
			}
			if paused {
				expectState(t, c, task.Paused)
				if running() != 5 {
					t.Error("a process of a paused container has ended")
				}
				if err := c.Resume(ctx); err != nil {
					t.Fatal(err)
				}
			}
			waitUntil(t, func() bool { return running() == 1 })
			if exit, err := exec.Wait(ctx); err != nil || exit.Status != 128+uint32(syscall.SIGUSR1) {
				t.Errorf("exec: %+v, %v", exit, err)
			}
			expectState(t, c, task.Running)
			if paused {
				if err := c.Pause(ctx); err != nil {
					t.Fatal(err)
				}
			}
			remove9(t, c)
			tasktest.CheckEvents(t, h.Events())
			h.checkClean(t)
		})
	}
}

// Update changes every limit that runc takes, in a running and in a paused
// container: the cgroup shows it.
func TestUpdateEffects(t *testing.T) {
	h := newHarness(t, lookPath(t, "runc"), true)
	ctx := testContext(t)
	c := h.make(t, "c", tasktest.Forever, true)
	paths, err := cgroup.Of(int(expectState(t, c, task.Running).Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, unified := paths["memory"]
	unified = !unified
	for round, paused := range []bool{false, true} {
		n := int64(round + 1)
		resources := fmt.Sprintf(`{"memory":{"limit":%d,"reservation":%d,"swap":%d},
			"cpu":{"shares":%d,"quota":%d,"period":100000,"cpus":"0","mems":"0"},"pids":{"limit":%d}}`,
			n<<28, n<<27, n<<29, 512*n, 50000*n, 100*n)
		if paused {
			if err := c.Pause(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Update(ctx, task.Any{Value: []byte(resources)}, nil); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"memory/memory.limit_in_bytes": fmt.Sprint(n << 28), "memory/memory.soft_limit_in_bytes": fmt.Sprint(n << 27),
			"cpu/cpu.shares": fmt.Sprint(512 * n), "cpu/cpu.cfs_quota_us": fmt.Sprint(50000 * n), "cpuset/cpuset.cpus": "0",
			"pids/pids.max": fmt.Sprint(100 * n),
		}
		if unified {
			want = map[string]string{
				"/memory.max": fmt.Sprint(n << 28), "/memory.low": fmt.Sprint(n << 27), "/cpu.max": fmt.Sprintf("%d 100000", 50000*n),
				"/cpuset.cpus": "0", "/pids.max": fmt.Sprint(100 * n),
			}
		}
		// Only kernels that account for swap have these.
		swap, bytes := filepath.Join("/sys/fs/cgroup/memory", paths["memory"], "memory.memsw.limit_in_bytes"), n<<29
		if unified {
			swap, bytes = filepath.Join("/sys/fs/cgroup", paths[""], "memory.swap.max"), n<<29-n<<28
		}
		if got, err := os.ReadFile(swap); !os.IsNotExist(err) && strings.TrimSpace(string(got)) != fmt.Sprint(bytes) {
			t.Errorf("%s is %q (%v), want %d", swap, got, err, bytes)
		}
		for file, value := range want {
			hierarchy, name, _ := strings.Cut(file, "/")
			path := filepath.Join("/sys/fs/cgroup", hierarchy, paths[hierarchy], name)
			if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != value {
				t.Errorf("%s is %q (%v), want %s", path, got, err, value)
			}
		}
		want2 := task.Running
		if paused {
			want2 = task.Paused
		}
		expectState(t, c, want2)
	}
	if !unified { // cgroup v2 takes such a limit, and kills
		if err := c.Update(ctx, task.Any{Value: []byte(`{"memory":{"limit":1}}`)}, nil); err == nil {
			t.Error("a limit that is in use already was set")
		}
	}
	if err := c.Kill(ctx, unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	expectExit(t, c, 137)
	remove9(t, c)
	h.checkClean(t)
}
