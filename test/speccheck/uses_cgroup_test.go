package speccheck

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// cgroupUses are members of linux.resources. A probe reads the container's own
// cgroup, below /cgroup, in the files of cgroup v1 and of v2: one is there.
var cgroupUses = []use{
	resource("memory.limit", "memory", `{"memory": {"limit": 33554432}}`, "memory.limit_in_bytes memory.max", `33554432`),
	resource("memory.reservation", "memory", `{"memory": {"reservation": 16777216}}`, "memory.soft_limit_in_bytes memory.low", `16777216`),
	resource("memory.swap", "memory", `{"memory": {"limit": 33554432, "swap": 50331648}}`, "memory.memsw.limit_in_bytes memory.swap.max", `50331648|16777216`).
		lacking(swapAccounting),
	resource("memory.kernel", "memory", `{"memory": {"kernel": 33554432}}`, "memory.kmem.limit_in_bytes", `33554432`).with(nobody...),
	resource("memory.kernelTCP", "memory", `{"memory": {"kernelTCP": 33554432}}`, "memory.kmem.tcp.limit_in_bytes", `33554432`).lacking(v1).with("crun"),
	resource("memory.swappiness", "memory", `{"memory": {"swappiness": 11}}`, "memory.swappiness", `\b11\b`).lacking(v1).updating("crun"),
	resource("memory.disableOOMKiller", "memory", `{"memory": {"disableOOMKiller": true}}`, "memory.oom_control", `oom_kill_disable 1`).lacking(v1).updating("crun"),
	resource("memory.useHierarchy", "memory", `{"memory": {"useHierarchy": true}}`, "memory.use_hierarchy", `1`).lacking(v1),
	resource("cpu.shares", "cpu", `{"cpu": {"shares": 512}}`, "cpu.shares cpu.weight", `(?m)^(512|[2-5]\d)$`),
	resource("cpu.quota", "cpu", `{"cpu": {"quota": 25000, "period": 50000}}`, "cpu.cfs_quota_us cpu.max", `25000`),
	resource("cpu.burst", "cpu", `{"cpu": {"quota": 25000, "period": 50000, "burst": 7000}}`, "cpu.cfs_burst_us cpu.max.burst", `7000`).with("runc-1.5"),
	resource("cpu.idle", "cpu", `{"cpu": {"idle": 1}}`, "cpu.idle", `(?m)^1$`).with("runc-1.5", "crun"),
	resource("cpu.realtimeRuntime", "cpu", `{"cpu": {"realtimeRuntime": 0, "realtimePeriod": 500000}}`, "cpu.rt_period_us", `500000`).lacking(v1),
	resource("cpu.cpus", "cpuset", `{"cpu": {"cpus": "0"}}`, "cpuset.cpus", `(?m)^0$`),
	resource("cpu.mems", "cpuset", `{"cpu": {"mems": "0"}}`, "cpuset.mems", `(?m)^0$`),
	resource("pids.limit", "pids", `{"pids": {"limit": 33}}`, "pids.max", `33`),
	resource("blockIO.weight", "blkio", `{"blockIO": {"weight": 300}}`, "blkio.weight blkio.bfq.weight io.bfq.weight io.weight", `300`).lacking(weights).
		with(runcs...), // crun does not look for the weights of BFQ
	resource("blockIO.leafWeight", "blkio", `{"blockIO": {"leafWeight": 300}}`, "blkio.leaf_weight", `300`).with(nobody...),
	resource("hugepageLimits", "hugetlb", `{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}`,
		"hugetlb.2MB.limit_in_bytes hugetlb.2MB.max", `4194304`),
	resource("network.classID", "net_cls", `{"network": {"classID": 1048577}}`, "net_cls.classid", `1048577`),
	resource("network.priorities", "net_prio", `{"network": {"priorities": [{"name": "lo", "priority": 3}]}}`, "net_prio.ifpriomap", `lo 3`),
	resource("rdma", "rdma", `{"rdma": {"mlx5_1": {"hcaHandles": 3}}}`, "rdma.max", `hca_handle=3`),
	resource("unified", "memory", `{"unified": {"memory.high": "33554432"}}`, "memory.high", `33554432`).lacking(v2),
	resource("unified, a file that nobody knows", "memory", `{"unified": {"berth.max": "1"}}`, "berth.max", `1`).with(nobody...),
	resource("devices", "devices", `{"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 250, "access": "rwm"}]}`,
		"", `a: No such device`).probing(`mknod /dev/a c 10 250; (: </dev/a) 2>&1 | sed 's/.*:/a:/'`).
		updating("crun").warning(runcs...),
	resource("devices, denied", "devices", `{"devices": [{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 10, "minor": 250, "access": "rwm"}]}`,
		"", `a: Operation not permitted`).probing(`mknod /dev/a c 10 250 2>&1 | sed 's/.*:/a:/'; (: </dev/a) 2>&1 | sed 's/.*:/a:/'`),
}

// resource is a use of one member of linux.resources: the files of the
// container's cgroup that may show it, separated by blanks, and the value.
func resource(member, controller, value, files, want string) use {
	path, _, _ := strings.Cut(member, ",")
	return use{
		name: member, path: "linux.resources." + path,
		spec: []string{
			`{"mounts": [{"destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}]}`,
			`{"linux": {"resources": ` + value + `}}`,
		},
		probe: `for f in ` + files + `; do cat /cgroup/$f /cgroup/*/$f 2>/dev/null; done`, want: want,
		needs: func() string { return missing(controller) },
	}
}

func (u use) with(by ...string) use {
	u.by = by
	return u
}

func (u use) updating(by ...string) use {
	u.updateBy = by
	return u
}

// warning says that an update by these runtimes is let pass with a warning.
func (u use) warning(runtimes ...string) use {
	u.updateWarned = runtimes
	return u
}

func (u use) failing(runtimes ...string) use {
	u.fails = runtimes
	return u
}

func (u use) lacking(needs func() string) use {
	before := u.needs
	u.needs = func() string {
		if lack := before(); lack != "" {
			return lack
		}
		return needs()
	}
	return u
}

func (u use) probing(script string) use {
	u.probe = script
	return u
}

// pure says whether the host has only cgroup v2.
func pure() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// missing says that the host has no such controller, by its name in v1.
func missing(controller string) string {
	if !pure() {
		if _, err := os.Stat("/sys/fs/cgroup/" + controller); err != nil {
			return "no cgroup controller " + controller
		}
		return ""
	}
	name := map[string]string{"blkio": "io"}[controller]
	if name == "" {
		name = controller
	}
	list, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if name == "devices" || slices.Contains(strings.Fields(string(list)), name) {
		return ""
	}
	return "no cgroup controller " + name
}

func v1() string {
	if pure() {
		return "cgroup v2"
	}
	return ""
}

func v2() string {
	if pure() {
		return ""
	}
	return "cgroup v1"
}

func swapAccounting() string {
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err != nil && !pure() {
		return "no swap accounting"
	}
	return ""
}

// weights says whether the host's cgroups have a weight for block I/O. A root
// cgroup never has: it makes one to look.
var weights = sync.OnceValue(func() string {
	if pure() {
		return ""
	}
	dir, err := os.MkdirTemp("/sys/fs/cgroup/blkio", "sc-")
	if err != nil {
		return "no cgroup controller blkio"
	}
	found, _ := filepath.Glob(dir + "/blkio*.weight") // the pattern is well formed
	if err := os.Remove(dir); err != nil {
		return err.Error()
	}
	if len(found) == 0 {
		return "no weights in cgroup blkio"
	}
	return ""
})
