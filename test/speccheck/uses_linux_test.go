package speccheck

import (
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Lists of runtimes for the column by.
var (
	runcs   = []string{"runc-1.1", "runc-1.5"}
	newRunc = []string{"runc-1.5"}
	nobody  = []string{""}
	// everybody: none of the runtimes does it, and each of them says so.
	everybody = []string{"*"}
)

// linuxUses are members of linux without cgroups and seccomp.
var linuxUses = []use{
	{
		name: "user namespace", path: "linux.uidMappings", spec: []string{userNamespace},
		probe: `cat /proc/self/uid_map`, want: `0\s+100000\s+65536`,
	},
	{
		name: "cgroup namespace", path: "linux.namespaces[5]",
		spec:  []string{`{"linux": {"namespaces": [{"type": "cgroup"}]}}`},
		probe: `cat /proc/self/cgroup`, want: `(?m)^\d+:\w*:/$`,
	},
	{
		name: "time namespace", path: "linux.namespaces[5]",
		spec:  []string{`{"linux": {"namespaces": [{"type": "time"}], "timeOffsets": {"boottime": {"secs": 86400}}}}`},
		probe: `cat /proc/self/timens_offsets`, want: `boottime\s+86400\s`, by: newRunc,
		fails: []string{"crun"}, // 1.8 knows it, and its init ends without a word
	},
	{
		name: "time offsets without a namespace", path: "linux.timeOffsets",
		spec:  []string{`{"linux": {"timeOffsets": {"boottime": {"secs": 86400}}}}`},
		probe: `cat /proc/self/timens_offsets`, want: `boottime\s+86400\s`, by: nobody,
	},
	{
		name: "namespace that nobody knows", path: "linux.namespaces[5].type",
		spec:  []string{`{"linux": {"namespaces": [{"type": "berth"}]}}`},
		probe: `true`, want: `^$`, by: nobody,
	},
	{
		name: "sysctl", path: "linux.sysctl",
		spec:  []string{`{"linux": {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}}}`},
		probe: `cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced`, want: `81\n1\n`,
	},
	{
		name: "sysctl of the whole host", path: "linux.sysctl",
		spec:  []string{`{"linux": {"sysctl": {"kernel.berth": "1"}}}`},
		probe: `true`, want: `^$`, by: nobody,
	},
	{
		name: "device", path: "linux.devices",
		spec:  []string{`{"linux": {"devices": [{"path": "/dev/berth", "type": "c", "major": 1, "minor": 3, "fileMode": 416, "uid": 7, "gid": 8}]}}`},
		probe: `stat -c '%a %u %g %t:%T' /dev/berth`, want: `640 7 8 1:3\n`,
	},
	{
		name: "device of the host's network", path: "linux.netDevices",
		prepare: netDevice,
		spec:    []string{`{"linux": {"netDevices": {"bt$TAG": {"name": "berth0"}}}}`},
		probe:   `ls /sys/class/net; cat /proc/net/dev`, want: `berth0`, by: newRunc,
	},
	{
		name: "memory policy", path: "linux.memoryPolicy",
		spec:  []string{`{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}}`},
		probe: `head -n 2 /proc/self/numa_maps`, want: ` bind:0 `, by: newRunc, needs: numa,
	},
	{
		name: "personality", path: "linux.personality",
		spec:  []string{`{"linux": {"personality": {"domain": "LINUX32"}}}`},
		probe: `uname -m`, want: `i686`, by: []string{"runc-1.5", "crun"},
	},
	{
		name: "RDT class", path: "linux.intelRdt",
		spec:  []string{`{"linux": {"intelRdt": {"closID": "berth"}}}`},
		probe: `true`, want: `^$`, needs: rdt,
	},
	{
		name: "RDT schemata", path: "linux.intelRdt",
		spec:  []string{`{"linux": {"intelRdt": {"schemata": ["L3:0=f"]}}}`},
		probe: `true`, want: `^$`, by: newRunc, needs: rdt,
	},
	{
		name: "RDT monitoring", path: "linux.intelRdt",
		spec:  []string{`{"linux": {"intelRdt": {"enableMonitoring": true}}}`},
		probe: `true`, want: `^$`, by: newRunc, needs: rdt,
	},
}

// tag names a network device after a directory: a name has at most 15 letters.
func tag(dir string) string {
	h := fnv.New32a()
	h.Write([]byte(dir))
	return fmt.Sprintf("%08x", h.Sum32())
}

// netDevice makes a device in the host's network, which goes away with the
// container's network or at the test's end.
func netDevice(t *testing.T, dir string) {
	t.Helper()
	name := "bt" + tag(dir)
	out, err := exec.Command(program(t, "busybox"), "ip", "link", "add", name, "type", "veth", "peer", "name", "bp"+tag(dir)).CombinedOutput()
	if err != nil {
		t.Fatalf("make a network device: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		// The other end of a pair goes with the one that is gone.
		_ = exec.Command(program(t, "busybox"), "ip", "link", "delete", name).Run()
	})
}

// lsm says whether a security module of the kernel is missing.
func lsm(name string) func() string {
	return func() string {
		list, _ := os.ReadFile("/sys/kernel/security/lsm")
		if strings.Contains(string(list), name) {
			return ""
		}
		return "no " + name
	}
}

func numa() string {
	if _, err := os.Stat("/proc/self/numa_maps"); err != nil {
		return "a kernel without NUMA"
	}
	return ""
}

func rdt() string {
	if _, err := os.Stat("/sys/fs/resctrl/schemata"); err != nil {
		return "no resctrl"
	}
	return ""
}
