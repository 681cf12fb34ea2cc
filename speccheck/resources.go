package speccheck

import (
	"slices"
	"strconv"
)

// resourceRules are the limits. What cgroup v1 or v2 alone has is refused on the
// other: runtimes ignore it there.
func resourceRules() []rule {
	at := "linux.resources."
	res := func(path string, kind kind, r rule) rule {
		r.path, r.kind, r.class = at+path, kind, ClassCgroup
		return r
	}
	v1 := (*checker).cgroup1
	list := []rule{
		res("devices", kList, rule{update: "update.devices"}),
		res("devices[]", kObject, rule{}),
		res("devices[].allow", kBool, rule{}),
		res("devices[].type", kString, rule{oneOf: []string{"a", "b", "c"}}),
		res("devices[].major", kI64, rule{zero: true}),
		res("devices[].minor", kI64, rule{zero: true}),
		res("devices[].access", kString, rule{use: (*checker).deviceAccess}),
		res("memory", kObject, rule{}),
		res("memory.limit", kI64, rule{zero: true, controller: "memory"}),
		res("memory.reservation", kI64, rule{zero: true, controller: "memory"}),
		res("memory.swap", kI64, rule{zero: true, controller: "memory"}),
		res("memory.kernel", kI64, rule{need: "memory.kernel", update: "update.other", use: (*checker).kernelMemory}),
		res("memory.kernelTCP", kI64, rule{need: "memory.kernel", update: "update.other", use: v1}),
		res("memory.swappiness", kU64, rule{zero: true, controller: "memory", update: "update.other", use: v1}),
		res("memory.disableOOMKiller", kBool, rule{controller: "memory", update: "update.other", use: v1}),
		res("memory.useHierarchy", kBool, rule{zero: true, use: (*checker).hierarchy}),
		res("memory.checkBeforeUpdate", kBool, rule{need: "memory.checkBeforeUpdate"}),
		res("cpu", kObject, rule{}),
		res("cpu.shares", kU64, rule{controller: "cpu"}),
		res("cpu.quota", kI64, rule{controller: "cpu"}),
		res("cpu.burst", kU64, rule{controller: "cpu", need: "cpu.burst", use: (*checker).cpuBurst}),
		res("cpu.period", kU64, rule{controller: "cpu"}),
		res("cpu.realtimeRuntime", kI64, rule{controller: "cpu", use: v1}),
		res("cpu.realtimePeriod", kU64, rule{controller: "cpu", use: v1}),
		res("cpu.cpus", kString, rule{controller: "cpuset"}),
		res("cpu.mems", kString, rule{controller: "cpuset"}),
		res("cpu.idle", kI64, rule{controller: "cpu", need: "cpu.idle", use: (*checker).cpuIdle}),
		res("pids", kObject, rule{}),
		res("pids.limit", kI64, rule{zero: true, controller: "pids"}),
		res("blockIO", kObject, rule{}),
		res("blockIO.weight", kU16, rule{controller: "blkio", use: (*checker).blockIOWeight}),
		res("blockIO.leafWeight", kU16, rule{controller: "blkio", use: (*checker).leafWeight}),
		res("blockIO.weightDevice", kList, rule{controller: "blkio", update: "update.blockIO-device"}),
		res("blockIO.weightDevice[]", kObject, rule{}),
		res("blockIO.weightDevice[].major", kI64, rule{}),
		res("blockIO.weightDevice[].minor", kI64, rule{}),
		res("blockIO.weightDevice[].weight", kU16, rule{}),
		res("blockIO.weightDevice[].leafWeight", kU16, rule{use: (*checker).leafWeight}),
	}
	for _, t := range []string{"throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice"} {
		list = append(
			list,
			res("blockIO."+t, kList, rule{controller: "blkio", update: "update.blockIO-device"}),
			res("blockIO."+t+"[]", kObject, rule{}),
			res("blockIO."+t+"[].major", kI64, rule{}),
			res("blockIO."+t+"[].minor", kI64, rule{}),
			res("blockIO."+t+"[].rate", kU64, rule{}),
		)
	}
	return append(
		list,
		res("hugepageLimits", kList, rule{controller: "hugetlb", update: "update.other"}),
		res("hugepageLimits[]", kObject, rule{}),
		res("hugepageLimits[].pageSize", kString, rule{use: (*checker).pageSize}),
		res("hugepageLimits[].limit", kU64, rule{}),
		res("network", kObject, rule{}),
		res("network.classID", kU32, rule{zero: true, controller: "net_cls", update: "update.other", use: v1}),
		res("network.priorities", kList, rule{controller: "net_prio", update: "update.other", use: v1}),
		res("network.priorities[]", kObject, rule{}),
		res("network.priorities[].name", kString, rule{}),
		res("network.priorities[].priority", kU32, rule{}),
		res("rdma", kDict, rule{controller: "rdma", need: "rdma", update: "update.other"}),
		res("rdma{}", kObject, rule{}),
		res("rdma{}.hcaHandles", kU32, rule{zero: true}),
		res("rdma{}.hcaObjects", kU32, rule{zero: true}),
		res("unified", kDict, rule{need: "unified", use: (*checker).cgroup2}),
		res("unified{}", kString, rule{}),
	)
}

// cgroup1 refuses what cgroup v2 does not have.
func (c *checker) cgroup1(value []byte) {
	if c.host.known() && c.host.CgroupV2 {
		c.lacksHost(ClassCgroup, value, "cgroup v2 has no such limit")
	}
}

// kernelMemory: since Linux 5.16 the kernel does not take this limit.
func (c *checker) kernelMemory(value []byte) {
	c.cgroup1(value)
	if c.host.known() && !c.host.CgroupV2 && c.host.Kernel.AtLeast(5, 16) {
		c.lacksHost(ClassCgroup, value, "Linux %s has no limit of kernel memory", c.host.Kernel)
	}
}

// blockIOWeight: in cgroup v1, Linux 5.0 and later has the weights of BFQ alone,
// in a file of another name.
func (c *checker) blockIOWeight(value []byte) {
	if c.host.known() && !c.host.CgroupV2 && c.host.Kernel.AtLeast(5, 0) {
		c.need(ClassCgroup, "blockIO.bfq", value)
	}
}

// leafWeight was the I/O scheduler CFQ's, which went with Linux 5.0.
func (c *checker) leafWeight(value []byte) {
	c.cgroup1(value)
	if c.host.known() && !c.host.CgroupV2 && c.host.Kernel.AtLeast(5, 0) {
		c.lacksHost(ClassCgroup, value, "Linux %s has no leaf weights", c.host.Kernel)
	}
}

// cgroup2 refuses what cgroup v1 does not have.
func (c *checker) cgroup2(value []byte) {
	if c.host.known() && !c.host.CgroupV2 {
		c.lacksHost(ClassCgroup, value, "it has cgroup v1, which knows no unified limits")
	}
}

// controller refuses a limit whose controller the host does not have.
func (c *checker) controller(name string, value []byte) {
	if !c.host.known() || c.host.Controllers == nil {
		return
	}
	if c.host.CgroupV2 {
		switch name {
		case "blkio":
			name = "io"
		case "net_cls", "net_prio":
			return // see cgroup1
		}
	}
	if !slices.Contains(c.host.Controllers, name) {
		c.lacksHost(ClassCgroup, value, "the cgroup controller %s is not there", name)
	}
}

// hierarchy: since Linux 5.11 every cgroup is hierarchical, before it was a
// choice in cgroup v1.
func (c *checker) hierarchy(value []byte) {
	if !c.host.known() {
		c.need(ClassCgroup, "memory.useHierarchy", value)
		return
	}
	if c.host.CgroupV2 || c.host.Kernel.AtLeast(5, 11) {
		if string(value) == "false" {
			c.lacksHost(ClassCgroup, value, "memory cgroups are always hierarchical")
		}
		return
	}
	c.need(ClassCgroup, "memory.useHierarchy", value)
}

func (c *checker) cpuBurst(value []byte) { c.kernel(ClassCgroup, value, 5, 14) }
func (c *checker) cpuIdle(value []byte)  { c.kernel(ClassCgroup, value, 5, 15) }

// kernel refuses what an older kernel does not have.
func (c *checker) kernel(class Class, value []byte, major, minor int) {
	if c.host.known() && !c.host.Kernel.AtLeast(major, minor) {
		c.lacksHost(class, value, "Linux %s; it needs %d.%d", c.host.Kernel, major, minor)
	}
}

func (c *checker) deviceAccess(value []byte) {
	for _, b := range value {
		if b != 'r' && b != 'w' && b != 'm' {
			c.add(ClassDocument, value, "only r, w and m are meant here")
			return
		}
	}
}

func (c *checker) pageSize(value []byte) {
	if c.host.known() && !slices.Contains(c.host.HugePageSizes, string(value)) {
		c.lacksHost(ClassCgroup, value, "it has no huge pages of this size")
	}
}

// scalar judges a value that is no list, object or map.
func (c *checker) scalar(n *node, v value) {
	r := n.rule
	if v.kind == kNull {
		if n.element {
			c.add(ClassDocument, v.text, "null in the place of "+r.kind.words())
		}
		return
	}
	if r.kind == kAny {
		c.use(r, v.text)
		return
	}
	want := r.kind
	if want >= kI32 && want <= kU64 {
		want = kNumber
	}
	if want != v.kind {
		c.add(ClassDocument, v.text, "it is "+v.kind.words()+", not "+r.kind.words())
		return
	}
	var zero bool
	switch v.kind {
	case kString:
		zero = len(v.text) == 0
		if slices.Contains(v.text, 0) {
			c.add(ClassDocument, v.text, "a NUL character, at which runtimes may cut the string")
		}
	case kBool:
		zero = v.text[0] == 'f'
	default:
		if !r.kind.holds(v.text) {
			c.add(ClassDocument, v.text, "it is not "+r.kind.words())
			return
		}
		zero = len(v.text) == 1 && v.text[0] == '0'
	}
	if !zero || r.zero {
		c.use(r, v.text)
	}
}

// holds says that a number as written is in the range of the kind.
func (k kind) holds(text []byte) bool {
	var err error
	switch k {
	case kI32:
		_, err = strconv.ParseInt(string(text), 10, 32)
	case kI64:
		_, err = strconv.ParseInt(string(text), 10, 64)
	case kU16:
		_, err = strconv.ParseUint(string(text), 10, 16)
	case kU32:
		_, err = strconv.ParseUint(string(text), 10, 32)
	default:
		_, err = strconv.ParseUint(string(text), 10, 64)
	}
	return err == nil
}

// words says what a kind is.
func (k kind) words() string {
	return [...]string{
		"an object", "an object", "a list", "a string", "a boolean", "a whole number of 32 bits",
		"a whole number of 64 bits", "a whole number from 0 to 65535", "a whole number from 0 to 4294967295",
		"a whole number from 0 to 18446744073709551615", "anything", "a number", "null",
	}[k]
}
