package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/fakeoci/fault"
)

// restorable makes a container that waits for its restore.
func (h *harness) restorable(t *testing.T, id, image, script string) task.Task {
	t.Helper()
	cfg := h.Config(t, id, script)
	cfg.Checkpoint = image
	c, err := h.set.Create(testContext(t), task.ID{Namespace: "test", Container: id}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A restore that fails, or whose shim dies, leaves a container that can be
// restored or deleted; the log of CRIU is in the bundle and in the error.
func TestRestoreFails(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	root := filepath.Join(h.dir, "runtime", "test")
	image := faketest.Image(t)
	c := h.restorable(t, "c", image, "exit 6")
	for _, rule := range []fault.Rule{
		{Op: "restore", At: "before", Action: "exit", Code: 1, Message: "criu failed", Times: 1},
		{Op: "restore", At: "middle", Action: "crash", Times: 1},
		{Op: "restore", Action: "bad-pid", Times: 1},
	} {
		faketest.Order(t, root, rule)
		_, err := c.Start(testContext(t))
		log := filepath.Join(h.dir, "bundles", "c", "criu-restore.log")
		if err == nil || !strings.Contains(err.Error(), "as ordered") || !strings.Contains(err.Error(), "(log: "+log+")") {
			t.Errorf("%+v: %v", rule, err)
		}
		if _, err := os.Stat(log); err != nil {
			t.Error(err)
		}
		expectState(t, c, task.CreatedCheckpoint)
		if _, err := os.Stat(filepath.Join(root, "c")); !os.IsNotExist(err) {
			t.Errorf("%+v: the runtime has a container left: %v", rule, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.dir, "bundles", "c", "work", "criu-work")); !os.IsNotExist(err) {
		t.Errorf("work of CRIU is left: %v", err)
	}
	h.succeed(t, func() {})
	c = h.get(t, "c")
	expectState(t, c, task.CreatedCheckpoint)
	if _, err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	expectExit(t, c, 6)
	remove9(t, c)

	// A shim that died while the runtime restored.
	h.restorable(t, "d", image, "exit 7")
	h.succeed(t, func() {
		path := filepath.Join(h.dir, "bundles", "d", recordFile)
		var r record
		if err := readFile(path, &r); err != nil {
			t.Fatal(err)
		}
		r.Op = task.OpStart.String()
		if err := writeFile(path, r); err != nil {
			t.Fatal(err)
		}
	})
	d := h.get(t, "d")
	expectState(t, d, task.CreatedCheckpoint)
	if _, err := d.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	tasktest.CheckEvents(t, h.Events())
	h.checkClean(t)
}

// A checkpoint that fails says what CRIU said, and changes nothing.
func TestCheckpointFails(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	c := h.make(t, "c", tasktest.Forever, true)
	faketest.Order(t, filepath.Join(h.dir, "runtime", "test"), fault.Rule{Op: "checkpoint", Action: "exit", Code: 1, Message: "criu failed", Times: 1})
	err := c.Checkpoint(testContext(t), task.CheckpointConfig{Path: t.TempDir()})
	log := filepath.Join(h.dir, "bundles", "c", "criu-dump.log")
	if err == nil || !strings.Contains(err.Error(), "criu failed; CRIU: Error (fakeoci): as ordered (log: "+log+")") {
		t.Error(err)
	}
	if _, err := os.Stat(log); err != nil {
		t.Error(err)
	}
	expectState(t, c, task.Running)
	image := t.TempDir()
	if err := c.Checkpoint(testContext(t), task.CheckpointConfig{Path: image}); err != nil {
		t.Fatal(err)
	}
	remove9(t, c)
	r := h.restorable(t, "r", image, "exit 3")
	if err := r.Pause(testContext(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("pause before the restore: %v", err)
	}
	if _, err := r.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	expectExit(t, r, 3)
	remove9(t, r)
	h.checkClean(t)
}

// restoringRunc is runc with a restore that needs no CRIU: it makes the
// container anew.
const restoringRunc = `#!/bin/sh
globals=
while :; do case $1 in
--root|--log|--log-format) globals="$globals $1 $2"; shift 2 ;;
*) break ;;
esac; done
[ "$1" = restore ] || exec runc $globals "$@"
while [ $# -gt 1 ]; do case $1 in
--bundle) bundle=$2 ;;
--pid-file) pidfile=$2 ;;
esac; shift; done
runc $globals create --bundle "$bundle" --pid-file "$pidfile" "$1" && exec runc $globals start "$1"
`

// A restored container has its cgroup: statistics, processes and what the
// kernel killed for memory.
func TestRestoredCgroup(t *testing.T) {
	runtime := filepath.Join(t.TempDir(), "restoring-runc")
	if err := os.WriteFile(runtime, []byte(restoringRunc), 0o700); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, runtime, true)
	ctx := testContext(t)
	c := h.restorable(t, "c", t.TempDir(), "read x </tmp/go; busybox tail /dev/zero; exit 9")
	gate := filepath.Join(h.rootfs, "tmp", "go")
	mkfifo(t, gate)
	if _, err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	pid := expectState(t, c, task.Running).Pid
	if stats, err := c.Stats(ctx); err != nil || len(stats.Value) == 0 {
		t.Errorf("statistics: %v, %v", stats, err)
	}
	if pids, err := c.Pids(ctx); err != nil || len(pids) != 1 || pids[0].Pid != pid {
		t.Errorf("processes %v (%v), want %d", pids, err, pid)
	}
	limit := task.Any{Value: []byte(`{"memory":{"limit":16777216,"swap":16777216}}`)}
	if err := c.Update(ctx, limit, nil); err != nil {
		t.Fatal(err)
	}
	release(t, gate)
	exit, err := c.Wait(ctx)
	if err != nil || exit.Status != 9 || !exit.OOMKilled {
		t.Errorf("exit %+v, %v", exit, err)
	}
	remove9(t, c)
	tasktest.CheckEvents(t, h.Events())
	h.checkClean(t)
}

func mkfifo(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
}

// release lets a script go on that reads from the FIFO.
func release(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
