package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/harness"
)

// TestCLIOptions checks options by what the container sees, on both daemons:
// they are the client's work.
func TestCLIOptions(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		sh := func(script string) []string { return []string{"sh", "-c", script} }
		proc := fmt.Sprintf("/proc/%d/ns/", d.PID())
		for name, test := range map[string]struct {
			flags, command []string
			stdout         string
		}{
			"init":          {[]string{"--init"}, sh("[ $$ != 1 ] && tr '\\0' ' ' </proc/1/cmdline | cut -c1-13"), "/dev/init -- \n"},
			"cwd":           {[]string{"--cwd", "/home"}, []string{"pwd"}, "/home\n"},
			"net-host":      {[]string{"--net-host", "--hostname", "x"}, sh("grep -c . /etc/hosts >/dev/null && hostname"), "x\n"},
			"hosts":         {[]string{"--add-host", "db:10.0.0.7"}, sh("grep db /etc/hosts; grep -c localhost /etc/hosts"), "10.0.0.7\tdb\n2\n"},
			"dns":           {[]string{"--dns", "10.0.0.8", "--dns-search", "a.test", "--dns-option", "ndots:2"}, []string{"cat", "/etc/resolv.conf"}, "nameserver 10.0.0.8\nsearch a.test\noptions ndots:2\n"},
			"volatile":      {[]string{"--volatile"}, sh("grep -c '^overlay / overlay .*volatile' /proc/mounts"), "1\n"},
			"rm":            {nil, sh("grep -c '^overlay / overlay .*volatile' /proc/mounts"), "1\n"},
			"no-pivot":      {[]string{"--no-pivot"}, []string{"echo", "here"}, "here\n"},
			"nofile":        {[]string{"--rlimit-nofile", "100:200"}, sh("ulimit -n; ulimit -Hn"), "100\n200\n"},
			"groups":        {[]string{"-u", "7:8", "--group-add", "9"}, []string{"id", "-G"}, "8 9\n"},
			"device":        {[]string{"--device", "/dev/null:/dev/zilch:r"}, sh("stat -c %t:%T /dev/zilch"), "1:3\n"},
			"privileged":    {[]string{"--privileged", "--privileged-without-host-devices"}, sh("ls /dev/kmsg 2>/dev/null; grep CapEff /proc/self/status | grep -c 'f$'; grep ' /proc/sys ' /proc/mounts; true"), "1\n"},
			"new privs":     {[]string{"--allow-new-privs"}, sh("grep NoNewPrivs /proc/self/status"), "NoNewPrivs:\t0\n"},
			"no filter":     {[]string{"--seccomp=false"}, sh("grep ^Seccomp: /proc/self/status"), "Seccomp:\t0\n"},
			"score":         {[]string{"--oom-score-adj", "500"}, []string{"cat", "/proc/self/oom_score_adj"}, "500\n"},
			"mount":         {[]string{"--mount", "type=tmpfs,dst=/m,options=size=64k:noexec"}, sh("grep -c '^tmpfs /m tmpfs .*noexec.*size=64k' /proc/mounts"), "1\n"},
			"platform":      {[]string{"--platform", "linux/amd64"}, []string{"echo", "here"}, "here\n"},
			"runtime":       {[]string{"--runtime", "io.containerd.runc.v2", "--runc-binary", d.Programs.Runc}, []string{"echo", "here"}, "here\n"},
			"no namespaces": {[]string{"--pid", "host", "--ipc", "host", "--uts", "host"}, sh("for k in pid ipc uts; do readlink /proc/self/ns/$k; done"), hostNamespaces(t, "pid", "ipc", "uts")},
			"with-ns":       {[]string{"--with-ns", "ipc:" + proc + "ipc", "--with-ns", "network:" + proc + "net"}, sh("for k in ipc net; do readlink /proc/self/ns/$k; done"), hostNamespaces(t, "ipc", "net")},
		} {
			t.Run(name, func(t *testing.T) {
				args := append([]string{"run", "--rm"}, test.flags...)
				r := d.Berth(t, append(append(args, harness.Image), test.command...)...)
				if r.Stdout != test.stdout || r.Code != 0 {
					t.Errorf("%s\nwant stdout %q", r, test.stdout)
				}
			})
		}
	})
}

func hostNamespaces(t *testing.T, kinds ...string) string {
	t.Helper()
	var all string
	for _, k := range kinds {
		link, err := os.Readlink("/proc/self/ns/" + k)
		if err != nil {
			t.Fatal(err)
		}
		all += link + "\n"
	}
	return all
}

// TestCLISpecOptions checks by the specification what this kernel, or any that
// tests run on, may lack; and what stands in the container's record.
func TestCLISpecOptions(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	class := filepath.Join(dir, "blockio.yaml")
	write(t, class, "classes:\n  slow:\n  - weight: 50\n")
	vendor := "vendor-" + d.Namespace + ".example"
	cdi := filepath.Join("/etc/cdi", vendor+".json")
	gpus := filepath.Join("/etc/cdi", "nvidia-"+d.Namespace+".json")
	if err := os.MkdirAll("/etc/cdi", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = os.Remove(cdi), os.Remove(gpus)
		_ = os.Remove("/etc/cdi")
	})
	const edits = `{"cdiVersion":"0.6.0","kind":"%s","devices":[{"name":"%s","containerEdits":{"env":["GIVEN=%s"],"deviceNodes":[{"path":"/dev/given","hostPath":"/dev/null"}]}}]}`
	write(t, cdi, fmt.Sprintf(edits, vendor+"/thing", "one", "thing"))
	number := fmt.Sprint(os.Getpid())
	write(t, gpus, fmt.Sprintf(edits, "nvidia.com/gpu", number, "gpu"))

	create := func(flags ...string) (container, *specs.Spec) {
		t.Helper()
		id := d.ID("spec")
		d.MustBerth(t, append(append([]string{"create", "--name", id}, flags...), harness.Image, "true")...)
		defer d.MustBerth(t, "rm", id)
		var list []container
		if err := json.Unmarshal([]byte(d.MustBerth(t, "inspect", id)), &list); err != nil {
			t.Fatal(err)
		}
		return list[0], &list[0].Spec
	}
	_, s := create("--rdt-class", "gold", "--apparmor-profile", "strict", "--blockio-class", "slow", "--blockio-config-file", class)
	if s.Linux.IntelRdt == nil || s.Linux.IntelRdt.ClosID != "gold" {
		t.Errorf("RDT: %+v", s.Linux.IntelRdt)
	}
	if s.Process.ApparmorProfile != "strict" {
		t.Errorf("AppArmor: %q", s.Process.ApparmorProfile)
	}
	if b := s.Linux.Resources.BlockIO; b == nil || b.Weight == nil || *b.Weight != 50 {
		t.Errorf("block I/O: %+v", b)
	}
	_, s = create("--cpus", "0.5", "--cpu-shares", "7", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--memory-reservation", "8m", "--security-opt", "label=user:role", "--rootfs-propagation", "slave")
	if c := s.Linux.Resources.CPU; *c.Quota != 50000 || *c.Period != 100000 || *c.Shares != 7 || c.Cpus != "0" || c.Mems != "0" {
		t.Errorf("CPU: %+v", c)
	}
	if m := s.Linux.Resources.Memory; m.Reservation == nil || *m.Reservation != 8<<20 || s.Process.SelinuxLabel != "user:role" || s.Linux.RootfsPropagation != "slave" {
		t.Errorf("memory: %+v", m)
	}
	_, s = create("--cpu-quota", "25000", "--cpu-period", "50000", "--memory", "8m", "--memory-swap", "16m", "--cgroup-parent", "harbour")
	if c := s.Linux.Resources.CPU; *c.Quota != 25000 || *c.Period != 50000 || s.Linux.CgroupsPath != "/harbour/"+d.ID("spec") {
		t.Errorf("CPU: %+v, cgroup %s", c, s.Linux.CgroupsPath)
	}
	if m := s.Linux.Resources.Memory; *m.Limit != 8<<20 || *m.Swap != 16<<20 {
		t.Errorf("memory: %+v", m)
	}
	c, s := create("--label", "a=b", "--label", "c", "--annotation", "d=e", "--sandbox", "box", "--snapshotter-label", "x=y", "--stop-signal", "HUP",
		"--cgroup", "/"+d.Namespace+"/x", "--runtime", "io.example.other.v1", "--runtime-config-path", "/etc/other", "--sync-fs")
	if c.Labels["a"] != "b" || s.Annotations["a"] != "b" || s.Annotations["d"] != "e" || c.SandboxID != "box" || s.Linux.CgroupsPath != "/"+d.Namespace+"/x" || c.Runtime != "io.example.other.v1" {
		t.Errorf("record: %+v, annotations %v", c, s.Annotations)
	}
	for flag, want := range map[string]string{"--device=" + vendor + "/thing=one": "thing", "--gpus=" + number: "gpu"} {
		out := d.MustBerth(t, "run", "--rm", flag, harness.Image, "sh", "-c", "echo $GIVEN; ls /dev/given")
		if out != want+"\n/dev/given\n" {
			t.Errorf("%s: %q", flag, out)
		}
	}
	checkOneLine(t, d.Berth(t, "run", "--gpus", "999999999", harness.Image, "true"), 125, "gpu=999999999", "/etc/cdi")
	checkOneLine(t, d.Berth(t, "run", "--device", "no.example/x=y", harness.Image, "true"), 125, "no.example/x=y")
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		checkOneLine(t, d.Berth(t, "run", "--apparmor-default-profile", "x", harness.Image, "true"), 125, "without AppArmor")
	}
}

// container is what these tests read of `berth inspect`.
type container struct {
	ID, Runtime, SandboxID string
	Labels                 map[string]string
	Spec                   specs.Spec
	Network                struct {
		Mode      string
		Addresses []string
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCLIIDMaps runs containers in user namespaces, with a copied root and with
// the snapshotter's own mapping, and looks at owners from both sides.
func TestCLIIDMaps(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		maps := []string{"--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"}
		shared := filepath.Join(d.Dir, "shared")
		if err := os.Mkdir(shared, 0o777); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(shared) })
		if err := os.Chmod(shared, 0o777); err != nil {
			t.Fatal(err)
		}
		for name, more := range map[string][]string{"copied": nil, "by the snapshotter": {"--remap-labels"}} {
			t.Run(name, func(t *testing.T) {
				flags := append(append([]string{"run", "--rm", "-v", shared + ":/shared"}, maps...), more...)
				file := filepath.Join(shared, strings.ReplaceAll(name, " ", "-"))
				out := d.MustBerth(t, append(flags, harness.Image, "sh", "-c",
					"id -u; stat -c %u:%g /bin/busybox /home/app; cat /proc/self/uid_map; echo again >/dev/stdout; touch /shared/"+filepath.Base(file))...)
				f := strings.Fields(out)
				if got := strings.Join(f, " "); got != "0 0:0 1000:1000 0 100000 65536 again" {
					t.Errorf("inside: %q", got)
				}
				st, err := os.Stat(file)
				if err != nil {
					t.Fatal(err)
				}
				if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 100000 || sys.Gid != 200000 {
					t.Errorf("outside, the file is %d:%d's", sys.Uid, sys.Gid)
				}
			})
		}
		// A map that leaves out ids of the image's files.
		r := d.Berth(t, "run", "--rm", "--uidmap", "0:100000:10", "--gidmap", "0:100000:10", harness.Image, "true")
		checkOneLine(t, r, 125, "1000", "map more ids")
	})
}

// TestCLIIDMappedVolume shows a directory's owner shifted, by a runtime that can.
func TestCLIIDMappedVolume(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := filepath.Join(d.Dir, "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	newRunc := filepath.Join(filepath.Dir(d.Programs.Ctr), "runc")
	out := d.MustBerth(t, "run", "--rm", "--runc-binary", newRunc, "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536",
		"--mount", "type=bind,src="+dir+",dst=/v,options=rbind:idmap", harness.Image, "sh", "-c", "stat -c %u:%g /v; touch /v/f")
	if out != "0:0\n" {
		t.Errorf("inside: %q", out)
	}
	st, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 0 {
		t.Errorf("outside, the file is %d's", sys.Uid)
	}
}

// TestCLILogDriver bounds a log, and leaves it out.
func TestCLILogDriver(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("log")
	d.MustBerth(t, "run", "-d", "--name", id, "--log-driver", "json-file", "--log-opt", "max-size=8k", "--log-opt", "max-file=2", harness.Image,
		"sh", "-c", "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done")
	d.MustBerth(t, "wait", id)
	out := d.MustBerth(t, "logs", id)
	if !strings.HasSuffix(out, "line 59998\nline 59999\n") || strings.Contains(out, "line 0\n") {
		t.Errorf("%d bytes of log, %.80q", len(out), out)
	}
	d.MustBerth(t, "rm", id)
	d.MustBerth(t, "run", "-d", "--name", id, "--log-driver", "none", harness.Image, "echo", "lost")
	d.MustBerth(t, "wait", id)
	checkOneLine(t, d.Berth(t, "logs", id), 1, "no log")
	d.MustBerth(t, "rm", id)
}

// A container of run --rm whose client is killed stays; its file system was never
// written to the disk, so it is for one run.
func TestCLIRunsOnce(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("once")
	client := d.Spawn(t, d.Programs.Berth, "run", "--rm", "--name", id, harness.Image, "sleep", "1000")
	harness.Await(t, time.Minute, "it runs", func() bool { return strings.Contains(d.Berth(t, "ps", "-q").Stdout, id) })
	client.Signal(t, syscall.SIGKILL)
	refused := func(verb string) {
		r := d.Berth(t, verb, id)
		if r.Code == 0 || !strings.Contains(r.Stderr, "run --rm") || !strings.Contains(r.Stderr, "berth rm -f "+id) {
			t.Errorf("%s: %s", verb, r)
		}
	}
	refused("restart")
	if out := d.MustBerth(t, "ps", "-q"); !strings.Contains(out, id) {
		t.Errorf("it was ended by the restart that was refused: %q", out)
	}
	d.MustBerth(t, "kill", "-s", "KILL", id)
	d.MustBerth(t, "wait", id)
	refused("start")
	d.MustBerth(t, "rm", "-f", id)
}
