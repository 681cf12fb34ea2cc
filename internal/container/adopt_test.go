package container

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/fakeoci/fault"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// succeed stands for the death of the shim and the start of the next: the old
// set's watches are gone, the new one has the disk. The processes are this test's
// children in both lives, as they are the guard's.
func (h *harness) succeed(t *testing.T, meanwhile func()) {
	t.Helper()
	h.close(t)
	meanwhile()
	sweep := h.open(t)
	defer sweep()
	if err := h.set.Adopt(testContext(t), nil); err != nil {
		t.Fatal(err)
	}
	h.set.Release()
}

func (h *harness) make(t *testing.T, id, script string, start bool) task.Task {
	t.Helper()
	ctx := testContext(t)
	c, err := h.set.Create(ctx, task.ID{Namespace: "test", Container: id}, h.Config(t, id, script))
	if err != nil {
		t.Fatal(err)
	}
	if start {
		if _, err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (h *harness) get(t *testing.T, id string) task.Task {
	t.Helper()
	c, err := h.set.Get(testContext(t), task.ID{Namespace: "test", Container: id})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func expectState(t *testing.T, p task.Process, want task.Status) task.State {
	t.Helper()
	st, err := p.State(testContext(t))
	if err != nil || st.Status != want {
		t.Fatalf("state %s (%v), want %s", st.Status, err, want)
	}
	return st
}

func expectExit(t *testing.T, p task.Process, want uint32) {
	t.Helper()
	exit, err := p.Wait(testContext(t))
	if err != nil || exit.Status != want || exit.Reason != "" {
		t.Fatalf("exit %+v (%v), want status %d", exit, err, want)
	}
}

func remove9(t *testing.T, c task.Task) {
	t.Helper()
	ctx := testContext(t)
	if st, err := c.State(ctx); err == nil && st.Status != task.Stopped && st.Status != task.Created {
		if err := c.Kill(ctx, syscall.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		if _, err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}

// Every state of a container, and of its execs, is taken up as it was, on a
// fake and on a real runtime.
func TestAdopt(t *testing.T) {
	for _, r := range []struct {
		name   string
		binary string
		real   bool
	}{{"fake", faketest.Binary(t), false}, {"runc", lookPath(t, "runc"), true}} {
		t.Run(r.name, func(t *testing.T) {
			h := newHarness(t, r.binary, r.real)
			ctx := testContext(t)
			h.make(t, "created", tasktest.Forever, false)
			running := h.make(t, "running", tasktest.Forever, true)
			exec, err := running.Exec(ctx, "e", h.Exec(t, tasktest.Forever))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := exec.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := running.Exec(ctx, "registered", h.Exec(t, "exit 5")); err != nil {
				t.Fatal(err)
			}
			if err := h.make(t, "paused", tasktest.Forever, true).Pause(ctx); err != nil {
				t.Fatal(err)
			}
			expectExit(t, h.make(t, "stopped", "exit 3", true), 3)
			gate := filepath.Join(h.dir, "gate")
			if r.real {
				gate = filepath.Join(h.rootfs, "tmp", "gate")
			}
			if err := syscall.Mkfifo(gate, 0o666); err != nil {
				t.Fatal(err)
			}
			inside := gate
			if r.real {
				inside = "/tmp/gate"
			}
			ending := h.make(t, "ending", "read x < "+inside+"; exit 42", true)
			pid := expectState(t, ending, task.Running).Pid

			h.succeed(t, func() {
				f, err := os.OpenFile(gate, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				f.Close()
				waitUntil(t, func() bool { return reap.IsZombie(int(pid)) })
			})

			expectExit(t, h.get(t, "ending"), 42)
			stopped := h.get(t, "stopped")
			expectState(t, stopped, task.Stopped)
			expectExit(t, stopped, 3)
			created := h.get(t, "created")
			expectState(t, created, task.Created)
			if _, err := created.Start(ctx); err != nil {
				t.Fatal(err)
			}
			running = h.get(t, "running")
			expectState(t, running, task.Running)
			again, err := running.Process(ctx, "e")
			if err != nil {
				t.Fatal(err)
			}
			expectState(t, again, task.Running)
			if err := again.Kill(ctx, syscall.SIGKILL, false); err != nil {
				t.Fatal(err)
			}
			expectExit(t, again, 137)
			registered, err := running.Process(ctx, "registered")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := registered.Start(ctx); err != nil {
				t.Fatal(err)
			}
			expectExit(t, registered, 5)
			paused := h.get(t, "paused")
			expectState(t, paused, task.Paused)
			if err := paused.Resume(ctx); err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{"created", "running", "paused", "stopped", "ending"} {
				remove9(t, h.get(t, id))
			}
			tasktest.CheckEvents(t, h.Events())
			h.checkClean(t)
		})
	}
}

// A pid that was given to another process since is not taken for the
// container: the exit is unknown, and says why.
func TestAdoptOfAnotherProcess(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	c := h.make(t, "c", tasktest.Forever, true)
	pid := int(expectState(t, c, task.Running).Pid)
	h.succeed(t, func() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Not at once: a runtime written in Go that has not exec'd yet has
		// threads that end after the first.
		waitUntil(t, func() bool {
			_, ok := reap.CollectChild(pid)
			return ok
		})
		// As if the pid were in use again: a living process, another start.
		path := filepath.Join(h.dir, "bundles", "c", recordFile)
		var r record
		if err := readFile(path, &r); err != nil {
			t.Fatal(err)
		}
		r.Pid = os.Getpid()
		if err := writeFile(path, r); err != nil {
			t.Fatal(err)
		}
	})
	exit, err := h.get(t, "c").Wait(testContext(t))
	if err != nil || exit.Status != reap.Unknown || exit.Reason == "" {
		t.Fatalf("%+v, %v", exit, err)
	}
	remove9(t, h.get(t, "c"))
	h.checkClean(t)
}

// A create that the dead shim had begun leaves nothing.
func TestAdoptOfHalfACreate(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	h.make(t, "c", tasktest.Forever, false)
	pid := int(expectState(t, h.get(t, "c"), task.Created).Pid)
	h.succeed(t, func() {
		path := filepath.Join(h.dir, "bundles", "c", recordFile)
		var r record
		if err := readFile(path, &r); err != nil {
			t.Fatal(err)
		}
		r.Op, r.Pid = task.OpState.String(), 0
		if err := writeFile(path, r); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := h.set.Get(testContext(t), task.ID{Namespace: "test", Container: "c"}); !errdefs.IsNotFound(err) {
		t.Fatalf("get: %v", err)
	}
	waitUntil(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	h.checkClean(t)
	// The id is free.
	remove9(t, h.make(t, "c", "exit 0", true))
}

// Garbage in place of a record costs that container and no other.
func TestAdoptOfGarbage(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	h.make(t, "bad", "exit 0", true)
	expectExit(t, h.get(t, "bad"), 0)
	h.make(t, "good", "exit 6", true)
	h.succeed(t, func() {
		if err := os.WriteFile(filepath.Join(h.dir, "bundles", "bad", recordFile), []byte("{garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/nowhere", filepath.Join(h.dir, "members", "gone")); err != nil {
			t.Fatal(err)
		}
	})
	expectExit(t, h.get(t, "good"), 6)
	remove9(t, h.get(t, "good"))
	list, err := h.set.List(testContext(t), "test")
	if err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
}

// What a runtime that fails or hangs leaves is taken back.
func TestCreateTakesBack(t *testing.T) {
	for name, rule := range map[string]fault.Rule{
		"fails first": {Op: "create", At: "before", Action: "exit", Code: 1, Message: "no such thing", Times: 1},
		"fails late":  {Op: "create", At: "after", Action: "exit", Code: 1, Message: "no such thing", Times: 1},
		"crashes":     {Op: "create", At: "after", Action: "crash", Times: 1},
		"no pid":      {Op: "create", Action: "no-pid", Times: 1},
		"bad pid":     {Op: "create", Action: "bad-pid", Times: 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, faketest.Binary(t), false)
			root := filepath.Join(h.dir, "runtime", "test")
			faketest.Order(t, root, rule)
			id := task.ID{Namespace: "test", Container: "c"}
			_, err := h.set.Create(testContext(t), id, h.Config(t, "c", tasktest.Forever))
			if err == nil {
				t.Fatal("the create succeeded")
			}
			if faketest.Hits(t, root, 0) != 1 {
				t.Fatal("the fault did not apply")
			}
			h.checkClean(t)
			remove9(t, h.make(t, "c", "exit 0", true))
		})
	}
}

// A start that the runtime refuses leaves the container created; it can be
// tried again.
func TestStartFails(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	root := filepath.Join(h.dir, "runtime", "test")
	c := h.make(t, "c", "exit 4", false)
	faketest.Order(t, root, fault.Rule{Op: "start", At: "before", Action: "exit", Code: 1, Message: "not today", Times: 1})
	if _, err := c.Start(testContext(t)); err == nil {
		t.Fatal("the start succeeded")
	}
	expectState(t, c, task.Created)
	if _, err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	expectExit(t, c, 4)
	remove9(t, c)
	h.checkClean(t)
}

// A delete that the runtime refuses can be tried again, and what it has
// forgotten counts as deleted.
func TestDeleteFails(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	root := filepath.Join(h.dir, "runtime", "test")
	c := h.make(t, "c", "exit 4", true)
	expectExit(t, c, 4)
	faketest.Order(t, root, fault.Rule{Op: "delete", At: "before", Action: "exit", Code: 1, Message: "not today", Times: 2})
	if _, err := c.Delete(testContext(t)); err == nil {
		t.Fatal("the delete succeeded")
	}
	expectState(t, c, task.Stopped)
	if err := os.RemoveAll(filepath.Join(root, "c")); err != nil {
		t.Fatal(err)
	}
	exit, err := c.Delete(testContext(t))
	if err != nil || exit.Status != 4 {
		t.Fatalf("%+v, %v", exit, err)
	}
	h.checkClean(t)
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not so within 30 s")
		}
	}
}

// A shim that dies when init was let go and the runtime has not noted it: the
// container runs.
func TestAdoptOfHalfAStart(t *testing.T) {
	for _, r := range []struct {
		name   string
		binary string
		real   bool
	}{{"fake", faketest.Binary(t), false}, {"runc", lookPath(t, "runc"), true}} {
		t.Run(r.name, func(t *testing.T) {
			h := newHarness(t, r.binary, r.real)
			c := h.make(t, "c", tasktest.Forever, false)
			fifo := filepath.Join(h.dir, "runtime", "test", "c", "exec.fifo")
			h.succeed(t, func() {
				f, err := os.Open(fifo) // as the runtime does
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				waitUntil(t, func() bool {
					comm, err := os.ReadFile("/proc/" + strconv.Itoa(int(expectState(t, c, task.Created).Pid)) + "/comm")
					return err == nil && (string(comm) == "sh\n" || string(comm) == "busybox\n")
				})
				path := filepath.Join(h.dir, "bundles", "c", recordFile)
				var rec record
				if err := readFile(path, &rec); err != nil {
					t.Fatal(err)
				}
				rec.Op = task.OpStart.String()
				if err := writeFile(path, rec); err != nil {
					t.Fatal(err)
				}
			})
			c = h.get(t, "c")
			expectState(t, c, task.Running)
			if _, err := os.Stat(fifo); r.real && !os.IsNotExist(err) {
				t.Errorf("runc is not told: %v", err)
			}
			remove9(t, c)
			tasktest.CheckEvents(t, h.Events())
			h.checkClean(t)
		})
	}
}
