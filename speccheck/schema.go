package speccheck

import (
	"strings"
	"sync"
)

// kind is the JSON type of a member, and its range.
type kind int

const (
	kObject kind = iota // with the members of the schema
	kDict               // with keys of the user's choice
	kList
	kString
	kBool
	kI32
	kI64
	kU16
	kU32
	kU64
	kAny    // not looked into
	kNumber // any number, of a value
	kNull   // of a value
)

// rule says of one member of the spec what its use needs. Members are used when
// they are there, are not null, and are not empty, false or 0.
type rule struct {
	path  string // "[]" after a list and "{}" after a map stand for each element
	kind  kind
	class Class
	// zero: empty, false or 0 is a use too (a pointer in the schema's Go types).
	zero bool
	// need is a capability of the runtime; exec and update are further ones in
	// the process of an exec and in the resources of an update.
	need, exec, update string
	// oneOf are the values that the runtime spec has.
	oneOf []string
	// controller is the cgroup controller that has the limit.
	controller string
	// use looks at a value further.
	use func(c *checker, value []byte)
	// key looks at a key of a map, leave at the end of an object.
	key   func(c *checker, name []byte)
	enter func(c *checker)
	leave func(c *checker)
}

// node is a rule in the tree of the schema.
type node struct {
	rule    *rule
	number  uint // among the members of its parent
	element bool
	members map[string]*node
	elem    *node
}

type tree struct {
	root, process, resources *node
	nodes                    map[string]*node // by path
}

// schema is built once and not changed after.
var schema = sync.OnceValue(func() *tree {
	all := rules()
	t := &tree{root: &node{rule: &rule{kind: kObject}, members: map[string]*node{}}, nodes: make(map[string]*node, len(all))}
	t.nodes[""] = t.root
	for i := range all {
		t.insert(&all[i])
	}
	t.process, t.resources = t.nodes["process"], t.nodes["linux.resources"]
	return t
})

// insert puts a rule below its parent, which the table has before it.
func (t *tree) insert(r *rule) {
	n := &node{rule: r}
	if r.kind == kObject {
		n.members = map[string]*node{}
	}
	t.nodes[r.path] = n
	if parent, ok := strings.CutSuffix(r.path, "[]"); ok {
		n.element, t.nodes[parent].elem = true, n
		return
	}
	if parent, ok := strings.CutSuffix(r.path, "{}"); ok {
		n.element, t.nodes[parent].elem = true, n
		return
	}
	i := strings.LastIndexByte(r.path, '.')
	parent := t.nodes[r.path[:max(i, 0)]]
	n.number = uint(len(parent.members))
	parent.members[r.path[i+1:]] = n
}

// rules is the whole table. A test holds it against the schema's Go types.
func rules() []rule {
	var all []rule
	for _, part := range [][]rule{specRules(), processRules(), linuxRules(), resourceRules()} {
		all = append(all, part...)
	}
	return all
}

var propagations = []string{
	"shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable",
}

// specRules are the members that are not for Linux alone.
func specRules() []rule {
	list := []rule{
		{path: "ociVersion", kind: kString, class: ClassVersion, zero: true, use: (*checker).version},
		{path: "process", kind: kObject, class: ClassProcess},
		{path: "root", kind: kObject, class: ClassMounts},
		{path: "root.path", kind: kString, class: ClassMounts},
		{path: "root.readonly", kind: kBool, class: ClassMounts},
		{path: "hostname", kind: kString, class: ClassNamespaces},
		{path: "domainname", kind: kString, class: ClassNamespaces, need: "domainname"},
		{path: "mounts", kind: kList, class: ClassMounts},
		{path: "mounts[]", kind: kObject, class: ClassMounts, enter: (*checker).enterMount, leave: (*checker).leaveMount},
		{path: "mounts[].destination", kind: kString, class: ClassMounts},
		{path: "mounts[].type", kind: kString, class: ClassMounts, use: (*checker).mountType},
		{path: "mounts[].source", kind: kString, class: ClassMounts},
		{path: "mounts[].options", kind: kList, class: ClassMounts},
		{path: "mounts[].options[]", kind: kString, class: ClassMounts, use: (*checker).mountOption},
	}
	for _, m := range []string{"mounts[].uidMappings", "mounts[].gidMappings"} {
		list = append(list, rule{path: m, kind: kList, class: ClassIDMap, need: "idmap", use: (*checker).mountMapping})
		list = append(list, mapping(m, ClassIDMap)...)
	}
	list = append(
		list,
		rule{path: "hooks", kind: kObject, class: ClassHooks},
		rule{path: "annotations", kind: kDict},
		rule{path: "annotations{}", kind: kString},
		rule{path: "linux", kind: kObject},
	)
	for _, h := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		at := "hooks." + h
		list = append(
			list,
			rule{path: at, kind: kList, class: ClassHooks, use: func(c *checker, v []byte) { c.hook(h, v) }},
			rule{path: at + "[]", kind: kObject, class: ClassHooks},
			rule{path: at + "[].path", kind: kString, class: ClassHooks},
			rule{path: at + "[].args", kind: kList, class: ClassHooks},
			rule{path: at + "[].args[]", kind: kString, class: ClassHooks},
			rule{path: at + "[].env", kind: kList, class: ClassHooks},
			rule{path: at + "[].env[]", kind: kString, class: ClassHooks},
			rule{path: at + "[].timeout", kind: kI64, class: ClassHooks, zero: true},
		)
	}
	for _, p := range []string{"solaris", "windows", "vm", "zos", "freebsd"} {
		list = append(list, otherPlatform(p))
	}
	return list
}

func otherPlatform(path string) rule {
	return rule{path: path, kind: kAny, class: ClassPlatform, use: func(c *checker, v []byte) {
		c.add(ClassPlatform, v, "runtimes for Linux ignore it")
	}}
}

// mapping are the members of an id mapping.
func mapping(at string, class Class) []rule {
	return []rule{
		{path: at + "[]", kind: kObject, class: class},
		{path: at + "[].containerID", kind: kU32, class: class},
		{path: at + "[].hostID", kind: kU32, class: class},
		{path: at + "[].size", kind: kU32, class: class},
	}
}

func processRules() []rule {
	list := []rule{
		{path: "process.terminal", kind: kBool, class: ClassProcess},
		{path: "process.consoleSize", kind: kObject, class: ClassProcess},
		{path: "process.consoleSize.height", kind: kU64, class: ClassProcess},
		{path: "process.consoleSize.width", kind: kU64, class: ClassProcess},
		{path: "process.user", kind: kObject, class: ClassProcess},
		{path: "process.user.uid", kind: kU32, class: ClassProcess},
		{path: "process.user.gid", kind: kU32, class: ClassProcess},
		{path: "process.user.umask", kind: kU32, class: ClassProcess, zero: true, need: "umask", exec: "exec.umask"},
		{path: "process.user.additionalGids", kind: kList, class: ClassProcess},
		{path: "process.user.additionalGids[]", kind: kU32, class: ClassProcess},
		otherPlatform("process.user.username"),
		{path: "process.args", kind: kList, class: ClassProcess},
		{path: "process.args[]", kind: kString, class: ClassProcess},
		otherPlatform("process.commandLine"),
		{path: "process.env", kind: kList, class: ClassProcess},
		{path: "process.env[]", kind: kString, class: ClassProcess},
		{path: "process.cwd", kind: kString, class: ClassProcess},
		{path: "process.capabilities", kind: kObject, class: ClassCapabilities},
		{path: "process.rlimits", kind: kList, class: ClassProcess},
		{path: "process.rlimits[]", kind: kObject, class: ClassProcess},
		{path: "process.rlimits[].type", kind: kString, class: ClassProcess, oneOf: rlimitTypes},
		{path: "process.rlimits[].hard", kind: kU64, class: ClassProcess},
		{path: "process.rlimits[].soft", kind: kU64, class: ClassProcess},
		{path: "process.noNewPrivileges", kind: kBool, class: ClassProcess},
		{path: "process.apparmorProfile", kind: kString, class: ClassLSM, use: (*checker).apparmor},
		{path: "process.oomScoreAdj", kind: kI64, class: ClassProcess, zero: true, exec: "exec.oomScoreAdj"},
		{path: "process.scheduler", kind: kObject, class: ClassScheduling, need: "scheduler", exec: "exec.scheduler"},
		{path: "process.scheduler.policy", kind: kString, class: ClassScheduling, oneOf: []string{
			"SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE",
		}},
		{path: "process.scheduler.nice", kind: kI32, class: ClassScheduling},
		{path: "process.scheduler.priority", kind: kI32, class: ClassScheduling},
		{path: "process.scheduler.flags", kind: kList, class: ClassScheduling},
		{path: "process.scheduler.flags[]", kind: kString, class: ClassScheduling, oneOf: []string{
			"SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY",
			"SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX",
		}},
		{path: "process.scheduler.runtime", kind: kU64, class: ClassScheduling},
		{path: "process.scheduler.deadline", kind: kU64, class: ClassScheduling},
		{path: "process.scheduler.period", kind: kU64, class: ClassScheduling},
		{path: "process.selinuxLabel", kind: kString, class: ClassLSM, use: (*checker).selinux},
		{path: "process.ioPriority", kind: kObject, class: ClassScheduling, need: "ioPriority", exec: "exec.ioPriority"},
		{path: "process.ioPriority.class", kind: kString, class: ClassScheduling, oneOf: []string{
			"IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE",
		}},
		{path: "process.ioPriority.priority", kind: kI64, class: ClassScheduling},
		{path: "process.execCPUAffinity", kind: kObject, class: ClassScheduling, need: "execCPUAffinity"},
		{path: "process.execCPUAffinity.initial", kind: kString, class: ClassScheduling},
		{path: "process.execCPUAffinity.final", kind: kString, class: ClassScheduling},
	}
	for _, set := range []string{"bounding", "effective", "inheritable", "permitted", "ambient"} {
		at := "process.capabilities." + set
		list = append(
			list,
			rule{path: at, kind: kList, class: ClassCapabilities},
			rule{path: at + "[]", kind: kString, class: ClassCapabilities, use: (*checker).capability},
		)
	}
	return list
}

func linuxRules() []rule {
	list := []rule{
		{path: "linux.uidMappings", kind: kList, class: ClassNamespaces},
		{path: "linux.gidMappings", kind: kList, class: ClassNamespaces},
		{path: "linux.sysctl", kind: kDict, class: ClassNamespaces, key: (*checker).sysctl},
		{path: "linux.sysctl{}", kind: kString, class: ClassNamespaces},
		{path: "linux.resources", kind: kObject, class: ClassCgroup},
		{path: "linux.cgroupsPath", kind: kString, class: ClassCgroup},
		{path: "linux.namespaces", kind: kList, class: ClassNamespaces},
		{path: "linux.namespaces[]", kind: kObject, class: ClassNamespaces},
		{path: "linux.namespaces[].type", kind: kString, class: ClassNamespaces, use: (*checker).namespace},
		{path: "linux.namespaces[].path", kind: kString, class: ClassNamespaces},
		{path: "linux.devices", kind: kList, class: ClassDevices},
		{path: "linux.devices[]", kind: kObject, class: ClassDevices},
		{path: "linux.devices[].path", kind: kString, class: ClassDevices},
		{path: "linux.devices[].type", kind: kString, class: ClassDevices, oneOf: []string{"c", "b", "u", "p"}},
		{path: "linux.devices[].major", kind: kI64, class: ClassDevices},
		{path: "linux.devices[].minor", kind: kI64, class: ClassDevices},
		{path: "linux.devices[].fileMode", kind: kU32, class: ClassDevices, zero: true},
		{path: "linux.devices[].uid", kind: kU32, class: ClassDevices, zero: true},
		{path: "linux.devices[].gid", kind: kU32, class: ClassDevices, zero: true},
		{path: "linux.netDevices", kind: kDict, class: ClassDevices, need: "netDevices"},
		{path: "linux.netDevices{}", kind: kObject, class: ClassDevices},
		{path: "linux.netDevices{}.name", kind: kString, class: ClassDevices},
		{path: "linux.rootfsPropagation", kind: kString, class: ClassMounts, oneOf: propagations, use: (*checker).rootfsPropagation},
		{path: "linux.maskedPaths", kind: kList, class: ClassMounts},
		{path: "linux.maskedPaths[]", kind: kString, class: ClassMounts},
		{path: "linux.readonlyPaths", kind: kList, class: ClassMounts},
		{path: "linux.readonlyPaths[]", kind: kString, class: ClassMounts},
		{path: "linux.mountLabel", kind: kString, class: ClassLSM, use: (*checker).selinux},
		{path: "linux.intelRdt", kind: kObject, class: ClassRDT, need: "rdt", use: (*checker).rdt},
		{path: "linux.intelRdt.closID", kind: kString, class: ClassRDT, need: "rdt.closID"},
		{path: "linux.intelRdt.schemata", kind: kList, class: ClassRDT, need: "rdt.schemata"},
		{path: "linux.intelRdt.schemata[]", kind: kString, class: ClassRDT},
		{path: "linux.intelRdt.l3CacheSchema", kind: kString, class: ClassRDT},
		{path: "linux.intelRdt.memBwSchema", kind: kString, class: ClassRDT},
		{path: "linux.intelRdt.enableMonitoring", kind: kBool, class: ClassRDT, need: "rdt.monitoring"},
		{path: "linux.memoryPolicy", kind: kObject, class: ClassScheduling, need: "memoryPolicy"},
		{path: "linux.memoryPolicy.mode", kind: kString, class: ClassScheduling, use: (*checker).memoryMode},
		{path: "linux.memoryPolicy.nodes", kind: kString, class: ClassScheduling},
		{path: "linux.memoryPolicy.flags", kind: kList, class: ClassScheduling},
		{path: "linux.memoryPolicy.flags[]", kind: kString, class: ClassScheduling, use: (*checker).memoryFlag},
		{path: "linux.personality", kind: kObject, class: ClassProcess, need: "personality"},
		{path: "linux.personality.domain", kind: kString, class: ClassProcess, oneOf: []string{"LINUX", "LINUX32"}},
		{path: "linux.personality.flags", kind: kList, class: ClassProcess, need: "personality.flags"},
		{path: "linux.personality.flags[]", kind: kString, class: ClassProcess},
		{path: "linux.timeOffsets", kind: kDict, class: ClassNamespaces, need: "time-namespace", use: (*checker).timeOffsets, key: (*checker).clock},
		{path: "linux.timeOffsets{}", kind: kObject, class: ClassNamespaces},
		{path: "linux.timeOffsets{}.secs", kind: kI64, class: ClassNamespaces},
		{path: "linux.timeOffsets{}.nanosecs", kind: kU32, class: ClassNamespaces},
	}
	list = append(list, mapping("linux.uidMappings", ClassNamespaces)...)
	list = append(list, mapping("linux.gidMappings", ClassNamespaces)...)
	return append(list, seccompRules()...)
}

func seccompRules() []rule {
	return []rule{
		{path: "linux.seccomp", kind: kObject, class: ClassSeccomp, need: "seccomp", use: (*checker).seccomp},
		{path: "linux.seccomp.defaultAction", kind: kString, class: ClassSeccomp, use: (*checker).seccompAction},
		{path: "linux.seccomp.defaultErrnoRet", kind: kU64, class: ClassSeccomp, zero: true, need: "seccomp.defaultErrnoRet"},
		{path: "linux.seccomp.architectures", kind: kList, class: ClassSeccomp},
		{path: "linux.seccomp.architectures[]", kind: kString, class: ClassSeccomp, use: (*checker).seccompArch},
		{path: "linux.seccomp.flags", kind: kList, class: ClassSeccomp},
		{path: "linux.seccomp.flags[]", kind: kString, class: ClassSeccomp, use: (*checker).seccompFlag},
		{path: "linux.seccomp.listenerPath", kind: kString, class: ClassSeccomp, need: "seccomp.notify", use: (*checker).listener},
		{path: "linux.seccomp.listenerMetadata", kind: kString, class: ClassSeccomp, need: "seccomp.notify"},
		{path: "linux.seccomp.syscalls", kind: kList, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[]", kind: kObject, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].names", kind: kList, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].names[]", kind: kString, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].action", kind: kString, class: ClassSeccomp, use: (*checker).seccompAction},
		{path: "linux.seccomp.syscalls[].errnoRet", kind: kU64, class: ClassSeccomp, zero: true},
		{path: "linux.seccomp.syscalls[].args", kind: kList, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].args[]", kind: kObject, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].args[].index", kind: kU64, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].args[].value", kind: kU64, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].args[].valueTwo", kind: kU64, class: ClassSeccomp},
		{path: "linux.seccomp.syscalls[].args[].op", kind: kString, class: ClassSeccomp, use: (*checker).seccompOperator},
	}
}
