package conformance

import (
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// restartLimit allows stock containerd some of its looks, every 10 s.
const restartLimit = 90 * time.Second

// labelsOf returns the labels of a container.
func labelsOf(t *testing.T, d *harness.Daemon, id string) map[string]string {
	t.Helper()
	var record struct{ Labels map[string]string }
	if err := json.Unmarshal([]byte(d.MustCtr(t, "containers", "info", id)), &record); err != nil {
		t.Fatal(err)
	}
	return record.Labels
}

// What nerdctl's --restart writes into the labels is done.
func TestRestartPolicies(t *testing.T) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Stock, harness.Berth} {
		t.Run(string(kind), func(t *testing.T) {
			// A container that is deleted while stock restarts it leaves its task.
			testRestartPolicies(t, harness.Start(t, harness.Config{Kind: kind, NoLeakCheck: kind == harness.Stock}))
		})
	}
}

func testRestartPolicies(t *testing.T, d *harness.Daemon) {
	t.Helper()
	start := func(name, script string, labels ...string) string {
		id := d.ID(name)
		args := []string{"run", "-d", "--null-io"}
		for _, l := range labels {
			args = append(args, "--label", "containerd.io/restart."+l)
		}
		d.MustCtr(t, append(args, harness.Image, id, "sh", "-c", script)...)
		return id
	}
	count := func(id string) string { return labelsOf(t, d, id)["containerd.io/restart.count"] }
	always := start("always", "exit 0", "status=running", "policy=always")
	once := start("once", "exit 3", "status=running", "policy=on-failure:1")
	good := start("good", "exit 0", "status=running", "policy=on-failure")
	explicit := start("explicit", "exit 1", "status=running", "policy=unless-stopped", "explicitly-stopped=true")
	plain := start("plain", "exit 1")
	stop := start("stop", "sleep 1000", "status=running")
	d.MustCtr(t, "containers", "label", stop, "containerd.io/restart.status=stopped")

	harness.Await(t, restartLimit, "two restarts, and one", func() bool {
		n := count(always)
		return n != "" && n != "1" && count(once) == "1"
	})
	for _, id := range []string{good, explicit, plain} {
		if n := count(id); n != "" {
			t.Errorf("%s was restarted %s times, want never", id, n)
		}
	}
	if n := count(once); n != "1" {
		t.Errorf("a container that may be restarted once was restarted %s times", n)
	}
	harness.Await(t, restartLimit, "stop by label", func() bool { return d.TaskStatus(t, stop) != "RUNNING" })

	for _, id := range []string{always, once, good, explicit, plain, stop} {
		d.MustCtr(t, "containers", "label", id, "containerd.io/restart.status=")
	}
	for _, id := range []string{always, once, good, explicit, plain, stop} {
		// One that was about to be restarted may still be on its way.
		harness.Await(t, restartLimit, "delete of "+id, func() bool {
			_ = d.Ctr(t, "tasks", "delete", "-f", id)
			return d.Ctr(t, "containers", "delete", id).Code == 0
		})
	}
}

// A daemon that comes back brings back what ended while it was away.
func TestRestartWithTheDaemon(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("back")
		d.MustCtr(t, "run", "-d", "--null-io", "--label", "containerd.io/restart.status=running",
			harness.Image, id, "sleep", "1000")
		pid := d.TaskPID(t, id)
		d.Kill(t)
		r := d.Exec(t, "", "/bin/kill", "-9", strconv.Itoa(pid))
		if r.Code != 0 {
			t.Fatal(r)
		}
		d.Boot(t)
		harness.Await(t, restartLimit, "restart", func() bool { return d.TaskStatus(t, id) == "RUNNING" && d.TaskPID(t, id) != pid })
		d.MustCtr(t, "containers", "label", id, "containerd.io/restart.status=")
		d.MustCtr(t, "tasks", "delete", "-f", id)
		d.MustCtr(t, "containers", "delete", id)
	})
}
