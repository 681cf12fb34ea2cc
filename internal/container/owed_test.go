package container

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
)

// A shim that is killed after it has stored a state and before it has told,
// and one that is killed right after it has told: every event comes, once and
// in order. The life of a container is gone through step by step, with a death
// in each.
func TestEachEventOnceOverDeaths(t *testing.T) {
	for _, told := range []bool{false, true} {
		t.Run(map[bool]string{false: "stored", true: "told"}[told], func(t *testing.T) {
			l := &steps{t: t, harness: newHarness(t, faketest.Binary(t), false), told: told}
			l.life()
			want := []task.EventKind{
				task.EventCreate, task.EventStart, task.EventExecAdded, task.EventExecStarted, task.EventExit,
				task.EventPaused, task.EventResumed, task.EventCheckpointed, task.EventExit, task.EventDelete,
			}
			var got []task.EventKind
			for _, e := range l.Events() {
				got = append(got, e.Kind)
				if e.Kind == task.EventCreate && (e.Bundle == "" || len(e.Rootfs) == 0 && l.real) {
					t.Errorf("create event %+v", e)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			tasktest.CheckEvents(t, l.Events())
			l.checkClean(t)
		})
	}
}

// steps goes through a life with deaths.
type steps struct {
	*harness
	t    *testing.T
	told bool
}

// step does what ends in an event, is killed, and comes again.
func (l *steps) step(do func(c task.Task) error) {
	l.t.Helper()
	var c task.Task
	if len(l.members()) > 0 {
		c = l.get(l.t, "c")
	}
	l.events.die(!l.told)
	if err := do(c); err != nil {
		l.t.Fatal(err)
	}
	l.succeed(l.t, func() { l.events.die(false) })
}

func (l *steps) members() []os.DirEntry {
	l.t.Helper()
	list, err := os.ReadDir(filepath.Join(l.dir, "members"))
	if err != nil {
		l.t.Fatal(err)
	}
	return list
}

func (l *steps) life() {
	t, ctx := l.t, testContext(l.t)
	process := func(c task.Task) task.Process {
		p, err := c.Process(ctx, "e")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	l.step(func(task.Task) error {
		_, err := l.set.Create(ctx, task.ID{Namespace: "test", Container: "c"}, l.Config(t, "c", tasktest.Forever))
		return err
	})
	l.step(func(c task.Task) error { _, err := c.Start(ctx); return err })
	l.step(func(c task.Task) error {
		_, err := c.Exec(ctx, "e", l.Exec(t, tasktest.Forever))
		return err
	})
	l.step(func(c task.Task) error { _, err := process(c).Start(ctx); return err })
	expectState(t, process(l.get(t, "c")), task.Running)
	l.step(func(c task.Task) error {
		if err := process(c).Kill(ctx, syscall.SIGKILL, false); err != nil {
			return err
		}
		_, err := process(c).Wait(ctx)
		return err
	})
	expectExit(t, process(l.get(t, "c")), 137)
	l.step(func(c task.Task) error { return c.Pause(ctx) })
	expectState(t, l.get(t, "c"), task.Paused)
	l.step(func(c task.Task) error { return c.Resume(ctx) })
	l.step(func(c task.Task) error { return c.Checkpoint(ctx, task.CheckpointConfig{Path: t.TempDir()}) })
	l.step(func(c task.Task) error {
		if err := c.Kill(ctx, unix.SIGKILL, false); err != nil {
			return err
		}
		_, err := c.Wait(ctx)
		return err
	})
	expectExit(t, l.get(t, "c"), 137)
	// The shim is killed before the files of the deleted container are gone: a
	// directory in the place of a file cannot be removed.
	l.step(func(c task.Task) error {
		saved := l.blockRemoval()
		_, err := c.Delete(ctx)
		if err == nil {
			t.Error("the delete could remove all")
		}
		return saved()
	})
	if left := l.members(); len(left) > 0 {
		t.Errorf("the container is still known: %v", left)
	}
}

// blockRemoval keeps the next delete from removing the link to the bundle; what
// it returns undoes that.
func (l *steps) blockRemoval() (undo func() error) {
	link := filepath.Join(l.dir, "members", "c")
	bundle, err := os.Readlink(link)
	if err == nil {
		err = os.Remove(link)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(link, "x"), 0o700)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return func() error {
		if err := os.RemoveAll(link); err != nil {
			return err
		}
		return os.Symlink(bundle, link)
	}
}

// A start and a pause that the runtime did and the shim did not live to store
// are told by the successor.
func TestEventOfACallThatWasBrokenOff(t *testing.T) {
	h := newHarness(t, faketest.Binary(t), false)
	c := h.make(t, "c", tasktest.Forever, true)
	rewind := func(status task.Status, op task.Operation) {
		path := filepath.Join(h.dir, "bundles", "c", recordFile)
		var r record
		if err := readFile(path, &r); err != nil {
			t.Fatal(err)
		}
		r.Status, r.Op, r.Owed = status.String(), op.String(), nil
		if err := writeFile(path, r); err != nil {
			t.Fatal(err)
		}
		kept := h.events.events[:0]
		for _, e := range h.events.events {
			if e.Kind == task.EventCreate || status == task.Running && e.Kind == task.EventStart {
				kept = append(kept, e)
			}
		}
		h.events.events = kept
	}
	h.succeed(t, func() { rewind(task.Created, task.OpStart) })
	c = h.get(t, "c")
	expectState(t, c, task.Running)
	if err := c.Pause(testContext(t)); err != nil {
		t.Fatal(err)
	}
	h.succeed(t, func() { rewind(task.Running, task.OpPause) })
	c = h.get(t, "c")
	expectState(t, c, task.Paused)
	if err := c.Resume(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if reap.IsZombie(int(expectState(t, c, task.Running).Pid)) {
		t.Error("it has ended")
	}
	remove9(t, c)
	var kinds []task.EventKind
	for _, e := range h.Events() {
		kinds = append(kinds, e.Kind)
	}
	want := []task.EventKind{task.EventCreate, task.EventStart, task.EventPaused, task.EventResumed, task.EventExit, task.EventDelete}
	if !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
	h.checkClean(t)
}
