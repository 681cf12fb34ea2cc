package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/harness"
)

// drivers are the cgroup drivers of OCI runtimes that this machine has, with the
// flags that choose them: systemd's only where systemd is init.
func drivers(d *harness.Daemon, name string) map[string][]string {
	m := map[string][]string{"cgroupfs": nil}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		m["systemd"] = []string{"--runc-systemd-cgroup", "--cgroup", "system.slice:berth:" + d.ID(name)}
	}
	return m
}

// cgroupDirs are the directories of the cgroups of a process, one for each
// hierarchy that is mounted, without those that are the root.
func cgroupDirs(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, name := range []string{parts[1], strings.TrimPrefix(parts[1], "name="), "unified"} {
			dir := filepath.Join("/sys/fs/cgroup", name, parts[2])
			if _, err := os.Stat(dir); err == nil && parts[2] != "/" {
				dirs = append(dirs, dir)
				break
			}
		}
	}
	return dirs
}

// TestResources follows a container's cgroup with each of the runtime's cgroup
// drivers: its limits, updates of them, its figures, freeze and thaw, the end of
// all its processes at once, and its removal.
func TestResources(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		for driver, flags := range drivers(d, "resources") {
			id := d.ID("resources")
			start(t, d, id, append(flags, "--memory-limit", fmt.Sprint(64<<20))...)
			pid := d.TaskPID(t, id)
			value := func(controller, v1, v2 string) string {
				return strings.TrimSpace(cgroupValue(t, pid, controller, v1, v2))
			}
			if got := value("memory", "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(64<<20) {
				t.Errorf("%s: memory limit %s", driver, got)
			}
			dirs := cgroupDirs(t, pid)
			if driver == "systemd" && !slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasSuffix(dir, "berth-"+id+".scope") }) {
				t.Errorf("cgroups %v are no scope of systemd", dirs)
			}

			updateTask(t, d, id)
			if got := value("memory", "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(48<<20) {
				t.Errorf("%s: memory limit after the update: %s", driver, got)
			}
			if got := value("pids", "pids.max", "pids.max"); got != "77" {
				t.Errorf("%s: pids limit after the update: %s", driver, got)
			}
			if out := d.MustCtr(t, "tasks", "metrics", "--format", "json", id); !json.Valid([]byte(out)) || !strings.Contains(out, fmt.Sprint(48<<20)) {
				t.Errorf("%s: metrics without the memory limit: %s", driver, out)
			}

			d.MustCtr(t, "tasks", "pause", id)
			if got := value("freezer", "freezer.state", "cgroup.events"); got != "FROZEN" && !strings.Contains(got, "frozen 1") {
				t.Errorf("%s: freezer after pause: %s", driver, got)
			}
			d.MustCtr(t, "tasks", "resume", id)
			if got := value("freezer", "freezer.state", "cgroup.events"); got != "THAWED" && !strings.Contains(got, "frozen 0") {
				t.Errorf("%s: freezer after resume: %s", driver, got)
			}

			d.MustCtr(t, "tasks", "exec", "--detach", "--fifo-dir", t.TempDir(), "--exec-id", d.ID("more"+driver), id, "sleep", "1000")
			d.MustCtr(t, "tasks", "kill", "--all", "--signal", "SIGKILL", id)
			d.AwaitStatus(t, id, "STOPPED")
			remove(t, d, id)
			for _, dir := range dirs {
				harness.Await(t, 30*time.Second, "the end of "+dir, func() bool {
					_, err := os.Stat(dir)
					return os.IsNotExist(err)
				})
			}
		}
	})
}

// updateTask gives the container 48 MiB of memory and 77 processes.
func updateTask(t *testing.T, d *harness.Daemon, id string) {
	t.Helper()
	memory, pids := int64(48<<20), int64(77)
	if err := update(t, d, id, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids},
	}); err != nil {
		t.Fatal(err)
	}
}

func update(t *testing.T, d *harness.Daemon, id string, r *specs.LinuxResources) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), time.Minute)
	defer cancel()
	container, err := d.Client(t).LoadContainer(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return task.Update(ctx, containerd.WithResources(r))
}

// TestResourcesOOMLives: a kill for memory is told when it happens, while init goes
// on, also that of an exec; and once, whatever becomes of the shim.
func TestResourcesOOMLives(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	events, topics := watch(t, d)
	id := d.ID("oom")
	const greedy = "dd if=/dev/zero of=/dev/null bs=100M count=1"
	d.MustCtr(t, "run", "--memory-limit", fmt.Sprint(16<<20), "--null-io", "--detach", harness.Image, id,
		"sh", "-c", greedy+"; while :; do sleep 1; done")
	await := func(n int) {
		t.Helper()
		harness.Await(t, 30*time.Second, fmt.Sprintf("%d oom events", n), func() bool { return count(topics(), "/tasks/oom") == n })
	}
	await(1)
	if status := d.TaskStatus(t, id); status != "RUNNING" {
		t.Errorf("init is %s", status)
	}
	if r := d.Ctr(t, "tasks", "exec", "--exec-id", "greedy", id, "sh", "-c", greedy+"; exit 5"); r.Code != 5 {
		t.Errorf("the exec: %s", r)
	}
	await(2)
	d.KillShim(t)
	d.MustCtr(t, "tasks", "exec", "--exec-id", "again", id, "sh", "-c", greedy+"; true")
	await(3)
	d.MustCtr(t, "tasks", "kill", "-s", "KILL", id)
	d.AwaitStatus(t, id, "STOPPED")
	harness.Await(t, 30*time.Second, "exit event", func() bool {
		got := topics()
		return got[len(got)-1] == "/tasks/exit" && count(got, "/tasks/exit") == 3
	})
	await(3)
	remove(t, d, id)
	events.Signal(t, syscall.SIGINT)
	events.Wait(t)
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// TestResourcesOOM lets the kernel kill containers for memory, init itself and a
// process beside it: it is told once, before the exit of init.
func TestResourcesOOM(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		events, topics := watch(t, d)
		limit := []string{"--memory-limit", fmt.Sprint(16 << 20), "--null-io", "--detach"}
		ends := 0
		for driver, flags := range drivers(d, "oom") {
			for name, command := range map[string]string{
				"init":  "exec dd if=/dev/zero of=/dev/null bs=100M count=1",
				"child": "dd if=/dev/zero of=/dev/null bs=100M count=1; exit 3",
			} {
				id := d.ID("oom")
				args := append(slices.Concat([]string{"run"}, flags, limit), harness.Image, id, "sh", "-c", command)
				d.MustCtr(t, args...)
				d.AwaitStatus(t, id, "STOPPED")
				ends++
				harness.Await(t, 30*time.Second, "exit event", func() bool {
					return strings.Count(events.Stdout(), "/tasks/exit") == ends
				})
				if d.Kind == harness.Stock {
					// Its event may come after the exit, and not at all where systemd
					// removes the cgroup first.
					remove(t, d, id)
					continue
				}
				got := topics()
				life := got[lastIndex(got, "/tasks/create"):]
				if count(life, "/tasks/oom") != 1 || life[len(life)-1] != "/tasks/exit" {
					t.Errorf("%s, %s: events %v", driver, name, life)
				}
				record, err := os.ReadFile(filepath.Join(d.State, "io.containerd.runtime.v2.task", d.Namespace, id, "exit.json"))
				if err != nil || !bytes.Contains(record, []byte(`"OOMKilled":true`)) {
					t.Errorf("%s, %s: exit.json %s, %v", driver, name, record, err)
				}
				remove(t, d, id)
			}
		}
		events.Signal(t, syscall.SIGINT)
		events.Wait(t)
	})
}

func lastIndex(list []string, want string) int {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == want {
			return i
		}
	}
	return 0
}

// TestResourcesBlockIO changes the block I/O limits of a running container: the
// cgroup shows them. A runtime that would ignore them is not asked. Against Berth
// alone: stock containerd takes what the runtime drops for done.
func TestResourcesBlockIO(t *testing.T) {
	t.Parallel()
	disks, err := filepath.Glob("/sys/block/*/dev")
	if err != nil || len(disks) == 0 {
		t.Fatalf("no block device (%v)", err)
	}
	device, err := os.ReadFile(disks[0])
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int64
	if _, err := fmt.Sscanf(string(device), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	throttle := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = major, minor
		return []specs.LinuxThrottleDevice{d}
	}
	d := harness.Start(t, harness.Config{})
	// The peers' runc can; that of Debian 12 is too old.
	id := d.ID("io")
	start(t, d, id, "--runc-binary", filepath.Join(filepath.Dir(d.Programs.StockShim), "runc"))
	pid := d.TaskPID(t, id)
	for _, n := range []uint64{1, 2} {
		if err := update(t, d, id, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			ThrottleReadBpsDevice: throttle(n << 20), ThrottleWriteIOPSDevice: throttle(100 * n),
		}}); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string][2]string{
			"blkio.throttle.read_bps_device":   {fmt.Sprintf("%d:%d %d", major, minor, n<<20), fmt.Sprintf("%d:%d rbps=%d ", major, minor, n<<20)},
			"blkio.throttle.write_iops_device": {fmt.Sprintf("%d:%d %d", major, minor, 100*n), fmt.Sprintf(" wiops=%d", 100*n)},
		} {
			if got := cgroupValue(t, pid, "blkio", file, "io.max"); !strings.Contains(got, want[0]) && !strings.Contains(got, want[1]) {
				t.Errorf("%s is %q, want %q", file, got, want)
			}
		}
	}
	remove(t, d, id)

	if version, err := exec.Command(d.Programs.Runc, "--version").Output(); err != nil || !strings.HasPrefix(string(version), "runc version 1.1.") {
		return // nothing here would ignore them
	}
	old := d.ID("old")
	start(t, d, old)
	err = update(t, d, old, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(1 << 20)}})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "throttleReadBpsDevice") {
		t.Errorf("update by a runtime that ignores it: %v", err)
	}
	remove(t, d, old)
}
