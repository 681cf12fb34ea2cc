package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/harness"
)

// ignored is how a refusal of what a runtime would ignore begins.
const ignored = "the spec asks for what would be ignored: "

// TestBerthCheck judges files and a container.
func TestBerthCheck(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	write := func(name, spec string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.json", `{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "hostname": "h", "linux": {"namespaces": [{"type": "uts"}]}}`)
	bad := write("bad.json", `{"ociVersion": "1.0.2", "hostnam": "h"}`)

	if r := d.Berth(t, "check", good); r.Code != 0 || !strings.Contains(r.Stdout, "all that the spec asks for") {
		t.Error(r)
	}
	if r := d.Berth(t, "check", bad); r.Code != 1 || !strings.Contains(r.Stdout, "hostnam") || !strings.Contains(r.Stdout, "refuse") || r.Stderr != "" {
		t.Error(r)
	}
	if r := d.Berth(t, "check", "--policy", "unknown-member=warn", bad); r.Code != 0 || !strings.Contains(r.Stdout, "warn") {
		t.Error(r)
	}
	r := d.Berth(t, "check", "--json", bad)
	var report struct {
		Action   string
		Runtime  struct{ Name, Binary string }
		Findings []struct{ Path, Class, Action, Setting, Docs string }
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatal(err)
	}
	if r.Code != 1 || report.Action != "refuse" || report.Runtime.Name != "runc" || len(report.Findings) != 1 {
		t.Fatalf("exit code %d, %+v", r.Code, report)
	}
	f := report.Findings[0]
	if f.Path != "hostnam" || f.Class != "unknown-member" || f.Setting != "speccheck.classes.unknown-member" || f.Docs != "docs/speccheck.md#unknown-member" {
		t.Errorf("%+v", f)
	}
	for _, args := range [][]string{
		{"check"},
		{"check", "--container", "c", good},
		{"check", filepath.Join(d.Dir, "none.json")},
		{"check", "--runtime-binary", "/none", good},
		{"check", "--policy", "nonsense=warn", good},
		{"check", "--container", d.ID("none")},
	} {
		if r := d.Berth(t, args...); r.Code != 2 || r.Stdout != "" || r.Stderr == "" {
			t.Errorf("%v: %s", args, r)
		}
	}

	// The record is made: only a task is judged by the daemon.
	id := d.ID("rdt")
	d.MustCtr(t, "containers", "create", "--rdt-class", "gold", harness.Image, id)
	if r := d.Berth(t, "check", "--container", id); r.Code != 1 || !strings.Contains(r.Stdout, "linux.intelRdt") {
		t.Error(r)
	}
	if r := d.Ctr(t, "tasks", "start", "--null-io", id); r.Code == 0 || !strings.Contains(r.Stderr, ignored+"linux.intelRdt") {
		t.Error(r)
	}
	d.MustCtr(t, "containers", "delete", id)
	if r := d.Berth(t, "run", "--rm", "--rdt-class", "gold", harness.Image, "true"); r.Code != 125 || !strings.Contains(r.Stderr, ignored+"linux.intelRdt") ||
		strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "speccheck.classes") {
		t.Error(r)
	}
}

// TestShimUnderStockChecks: Berth's shim refuses under a daemon that does not,
// and heeds the policy of that daemon's environment.
func TestShimUnderStockChecks(t *testing.T) {
	t.Parallel()
	run := func(t *testing.T, env ...string) harness.Result {
		d := harness.Start(t, harness.Config{Kind: harness.Stock, Env: env})
		return d.Ctr(t, "run", "--rm", "--null-io", "--runtime", harness.Shim(t), "--rdt-class", "gold", harness.Image, d.ID("rdt"), "true")
	}
	if r := run(t); r.Code == 0 || !strings.Contains(r.Stderr, ignored+"linux.intelRdt") {
		t.Error(r)
	}
	// The runtime itself is asked then.
	if r := run(t, "BERTH_SPECCHECK=rdt=allow"); strings.Contains(r.Stderr, ignored) {
		t.Error(r)
	}

	d := harness.Start(t, harness.Config{Kind: harness.Stock})
	id := d.ID("running")
	d.MustCtr(t, "run", "-d", "--null-io", "--runtime", harness.Shim(t), harness.Image, id, "sleep", "1000")
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), time.Minute)
	defer cancel()
	loaded, err := d.Client(t).LoadContainer(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := loaded.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	rdma := map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: new(uint32)}}
	if err := task.Update(ctx, containerd.WithResources(&specs.LinuxResources{Rdma: rdma})); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("update of rdma: %v", err)
	}
	process := &specs.Process{
		Args: []string{"true"}, Cwd: "/", NoNewPrivileges: true,
		Scheduler: &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5},
	}
	if _, err := task.Exec(ctx, "sched", process, cio.NullIO); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "process.scheduler") {
		t.Errorf("exec with a scheduler: %v", err)
	}
	d.MustCtr(t, "tasks", "delete", "-f", id)
	d.MustCtr(t, "containers", "delete", id)
}
