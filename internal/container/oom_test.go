package container

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
)

// storedExits is a sink that looks whether an exit of init is on disk when it is told.
type storedExits struct {
	*recorder
	t       *testing.T
	bundles string
}

func (s storedExits) Emit(e task.Event) {
	if e.Kind == task.EventExit && e.ExecID == "" {
		if _, err := os.Stat(filepath.Join(s.bundles, e.ID.Container, exitFile)); err != nil {
			s.t.Errorf("the exit of %s is told before it is stored: %v", e.ID.Container, err)
		}
	}
	s.recorder.Emit(e)
}

// The kernel kills init itself for memory: its oom and its exit are found at the
// same time, by two. Each is told once, in order, and the exit when it is stored.
func TestOOMOfInit(t *testing.T) {
	h := newHarness(t, "runc", true)
	h.set.cfg.Events = storedExits{h.events, t, filepath.Join(h.dir, "bundles")}
	ctx := testContext(t)
	limit := task.Any{Value: []byte(`{"memory":{"limit":16777216,"swap":16777216}}`)}
	for i := range 10 {
		id := task.ID{Namespace: "test", Container: fmt.Sprint("c", i)}
		c, err := h.set.Create(ctx, id, h.Config(t, id.Container, "exec busybox tail /dev/zero"))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Update(ctx, limit, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if exit, err := c.Wait(ctx); err != nil || exit.Status != 137 || !exit.OOMKilled {
			t.Errorf("exit %+v, %v", exit, err)
		}
		remove9(t, c)
		var got []task.EventKind
		for _, e := range h.Events() {
			if e.ID == id {
				got = append(got, e.Kind)
			}
		}
		want := []task.EventKind{task.EventCreate, task.EventStart, task.EventOOM, task.EventExit, task.EventDelete}
		if !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	}
	tasktest.CheckEvents(t, h.Events())
	h.checkClean(t)
}
