package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// watch begins to watch the events of the daemon's namespace. The function
// that it returns gives the topics seen so far, in order, without those of
// images and content.
func watch(t *testing.T, d *harness.Daemon) (*harness.Process, func() []string) {
	t.Helper()
	p := d.Spawn(t, d.Programs.Ctr, "events")
	// The subscription begins at some time after the client's start: make
	// events until one comes.
	n := 0
	harness.Await(t, 30*time.Second, "first event", func() bool {
		n++
		d.MustCtr(t, "images", "label", harness.Image, fmt.Sprintf("probe=%d", n))
		return strings.Contains(p.Stdout(), "/images/update")
	})
	return p, func() []string {
		var topics []string
		for line := range strings.Lines(p.Stdout()) {
			for _, field := range strings.Fields(line) {
				if strings.HasPrefix(field, "/containers/") || strings.HasPrefix(field, "/tasks/") || strings.HasPrefix(field, "/snapshot/") {
					topics = append(topics, field)
					break
				}
			}
		}
		return topics
	}
}

// TestCtrEvents checks that a container's life is told once, in order.
func TestCtrEvents(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		p, topics := watch(t, d)
		id := d.ID("told")
		start(t, d, id)
		if r := d.Ctr(t, "tasks", "exec", "--exec-id", d.ID("e"), id, "sh", "-c", "exit 5"); r.Code != 5 {
			t.Error(r)
		}
		d.MustCtr(t, "tasks", "pause", id)
		d.MustCtr(t, "tasks", "resume", id)
		remove(t, d, id)
		want := []string{
			"/snapshot/prepare", "/containers/create", "/tasks/create", "/tasks/start",
			"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
			"/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete",
			"/snapshot/remove", "/containers/delete",
		}
		if d.Kind == harness.Stock {
			// Its shim may end before it has sent the event.
			want = slices.DeleteFunc(want, func(topic string) bool { return topic == "/tasks/delete" })
		}
		told := func() []string {
			return slices.DeleteFunc(topics(), func(topic string) bool {
				return topic == "/tasks/delete" && d.Kind == harness.Stock
			})
		}
		if !harness.Poll(20*time.Second, func() bool { return slices.Equal(told(), want) }) {
			t.Errorf("events %v\nwant   %v\n%s", told(), want, p.Stdout())
		}
		if out := p.Stdout(); !strings.Contains(out, `"exit_status":5`) || !strings.Contains(out, `"exit_status":137`) {
			t.Errorf("exit codes of the exec process and of the container are not told:\n%s", out)
		}
	})
}
