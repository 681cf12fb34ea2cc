package ociruntime_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// change edits the box's spec before the create.
func (c *box) change(edit func(*specs.Spec)) {
	c.t.Helper()
	path := filepath.Join(c.bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		c.t.Fatal(err)
	}
	edit(&s)
	if data, err = json.Marshal(s); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// cgroups are the box's cgroup directories that exist.
func (c *box) cgroups() []string {
	c.t.Helper()
	found, err := filepath.Glob("/sys/fs/cgroup/*/" + c.id)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/" + c.id); err == nil {
		found = append(found, "/sys/fs/cgroup/"+c.id)
	}
	return found
}

// end kills the box's init and reaps it, as the shim does.
func (c *box) end() {
	c.t.Helper()
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	reap(c.t, c.pid)
}

func (c *box) checkGone() {
	c.t.Helper()
	if left := c.cgroups(); len(left) > 0 {
		c.t.Errorf("cgroups are left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(c.Root, c.id)); !errors.Is(err, fs.ErrNotExist) {
		c.t.Errorf("the runtime's state is left: %v", err)
	}
}

// With runc an ended container is deleted without a call, with the cgroups
// that it made for itself.
func TestDeleteWithoutACall(t *testing.T) {
	b := newBench(t, subjects[1])
	calls := b.logged()
	c := b.newBox(sleeper())
	c.create()
	c.start()
	groups := c.cgroups()
	if len(groups) == 0 {
		t.Fatal("the container has no cgroup")
	}
	if err := os.MkdirAll(filepath.Join(groups[0], "inner", "most"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.end()
	if err := c.Delete(ctx(t), c.id, false); err != nil {
		t.Fatal(err)
	}
	c.checkGone()
	if strings.Contains(calls(), " delete ") {
		t.Errorf("the runtime was called:\n%s", calls())
	}
}

// A hook that is to run after the container is the runtime's to run.
func TestDeleteRunsHooks(t *testing.T) {
	b := newBench(t, subjects[1])
	calls := b.logged()
	c := b.newBox(sleeper())
	mark := filepath.Join(b.dir, "mark")
	c.change(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/touch", Args: []string{"touch", mark}}}}
	})
	c.create()
	c.start()
	c.end()
	if err := c.Delete(ctx(t), c.id, false); err != nil {
		t.Fatal(err)
	}
	c.checkGone()
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the hook did not run: %v", err)
	}
	if !strings.Contains(calls(), " delete ") {
		t.Errorf("the runtime was not called:\n%s", calls())
	}
}

// Processes that outlive init, for want of a pid namespace, are the runtime's
// to end.
func TestDeleteWithProcessesLeft(t *testing.T) {
	b := newBench(t, subjects[1])
	calls := b.logged()
	c := b.newBox(shell("sleep 1000 & exec sleep 1000"))
	c.change(func(s *specs.Spec) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "mount"}, {Type: "ipc"}}
	})
	c.create()
	c.start()
	procs := filepath.Join(c.cgroups()[0], "cgroup.procs")
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		data, err := os.ReadFile(procs)
		if err != nil {
			t.Fatal(err)
		}
		if len(strings.Fields(string(data))) == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the second process never came")
		}
	}
	c.end()
	if err := c.Delete(ctx(t), c.id, false); err != nil {
		t.Fatal(err)
	}
	reapOrphans(t)
	c.checkGone()
	if !strings.Contains(calls(), " delete ") {
		t.Errorf("the runtime was not called:\n%s", calls())
	}
}

// What still runs is not deleted, by no one.
func TestDeleteOfARunningContainer(t *testing.T) {
	b := newBench(t, subjects[1])
	c := b.newBox(sleeper())
	c.create()
	c.start()
	if err := c.Delete(ctx(t), c.id, false); err == nil {
		t.Fatal("deleted")
	}
	if len(c.cgroups()) == 0 || c.status() != "running" {
		t.Errorf("cgroups %v, state %q", c.cgroups(), c.status())
	}
}
