package speccheck

import (
	"slices"
	"strings"
)

// value is a string, a number, a boolean or null.
type value struct {
	kind kind
	text []byte // of a string: what it means; else: as it is written
}

// expect says that the value is an object or a list. nil: it is not looked into.
func (n *node) expect(c *checker, kinds ...kind) *node {
	if n == nil {
		return nil
	}
	if n.rule.kind == kAny {
		w := c.w
		c.use(n.rule, w.data[w.pos:min(len(w.data), w.pos+maxValue)])
		return nil
	}
	if !slices.Contains(kinds, n.rule.kind) {
		c.add(ClassDocument, nil, "it is "+kinds[0].words()+", not "+n.rule.kind.words())
		return nil
	}
	return n
}

func (c *checker) enter(n *node) {
	if n.rule.enter != nil {
		n.rule.enter(c)
	}
}

func (c *checker) leave(n *node) {
	if n.rule.leave != nil {
		n.rule.leave(c)
	}
}

func (c *checker) key(n *node, name []byte) {
	if slices.Contains(name, 0) {
		c.add(ClassDocument, name, "a NUL character, at which runtimes may cut the string")
	}
	if n.rule.key != nil {
		n.rule.key(c, name)
	}
}

// used is called at the first element of a list, or member of an object. The
// value is the raw beginning of it.
func (c *checker) used(n *node, raw []byte) { c.use(n.rule, raw) }

func (c *checker) use(r *rule, value []byte) {
	if r.need != "" {
		c.need(r.class, r.need, value)
	}
	if r.exec != "" && c.mode == modeExec {
		c.need(r.class, r.exec, value)
	}
	if r.update != "" && c.mode == modeUpdate {
		c.need(r.class, r.update, value)
	}
	if r.controller != "" {
		c.controller(r.controller, value)
	}
	if r.oneOf != nil && !slices.Contains(r.oneOf, string(value)) {
		c.add(r.class, value, "the runtime spec knows only "+strings.Join(r.oneOf, ", "))
	}
	if r.use != nil {
		r.use(c, value)
	}
}

// version compares ociVersion with the range that the runtime names.
func (c *checker) version(value []byte) {
	v, ok := parseVersion(string(value))
	if !ok {
		c.add(ClassDocument, value, "it is not a version such as 1.3.0")
		return
	}
	if v[0] != 1 {
		// In another major version, members may mean other things.
		c.add(ClassDocument, value, "there is no such version of the runtime spec")
		return
	}
	low, high := c.features.specRange()
	if lowest, ok := parseVersion(low); ok && v.less(lowest) {
		c.add(ClassVersion, value, c.features.Runtime.String()+" knows the runtime spec from "+low)
	}
	if highest, ok := parseVersion(high); ok && highest.less(v) {
		c.add(ClassVersion, value, c.features.Runtime.String()+" knows the runtime spec up to "+high)
	}
}

func (c *checker) hook(name string, value []byte) {
	if d := c.features.doc; d != nil && d.Hooks != nil {
		if !slices.Contains(d.Hooks, name) {
			c.add(ClassHooks, value, c.features.Runtime.String()+" does not support the hook "+name)
		}
		return
	}
	if name == "createRuntime" || name == "createContainer" || name == "startContainer" {
		c.need(ClassHooks, "hooks.create", value)
	}
}

var rlimitTypes = []string{
	"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK",
	"RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO",
	"RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
}

// capabilityNames are in the order of their numbers (linux/capability.h).
var capabilityNames = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL
CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW
CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN
CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE
CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ
CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)

func (c *checker) capability(value []byte) {
	name := string(value)
	number := slices.Index(capabilityNames, name)
	d := c.features.linux()
	switch {
	case number < 0 && !slices.Contains(d.Capabilities, name):
		c.add(ClassCapabilities, value, "there is no such capability")
	case d.Capabilities != nil && !slices.Contains(d.Capabilities, name):
		c.add(ClassCapabilities, value, c.features.Runtime.String()+" does not know this capability")
	case number >= 0 && c.host.Capabilities != 0 && c.host.Capabilities&(1<<number) == 0:
		c.addMild(ClassCapabilities, value, "this host: the daemon does not have this capability and cannot grant it")
	}
}

func (c *checker) apparmor(value []byte) {
	c.need(ClassLSM, "apparmor", value)
	if c.host.known() && !c.host.AppArmor && string(value) != "unconfined" {
		c.lacksHost(ClassLSM, value, "AppArmor is not enabled")
	}
}

func (c *checker) selinux(value []byte) {
	c.need(ClassLSM, "selinux", value)
	if c.host.known() && !c.host.SELinux {
		c.lacksHost(ClassLSM, value, "SELinux is not enabled")
	}
}

// namespacedSysctls are those of an IPC namespace.
var namespacedSysctls = strings.Fields(`kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax
kernel.shmmni kernel.shm_rmid_forced kernel.domainname`)

// sysctl: runc and crun set only what a namespace has.
func (c *checker) sysctl(key []byte) {
	name := strings.ReplaceAll(string(key), "/", ".")
	if r := c.features.Runtime.Name; r != "runc" && r != "crun" {
		return
	}
	if !slices.Contains(namespacedSysctls, name) && !strings.HasPrefix(name, "fs.mqueue.") && !strings.HasPrefix(name, "net.") {
		c.add(ClassNamespaces, nil, "it is no namespace's but the whole host's, and "+c.features.Runtime.String()+" does not set it")
	}
}

func (c *checker) namespace(value []byte) {
	name := string(value)
	c.relations.timeNamespace = c.relations.timeNamespace || name == "time"
	if !c.listed(ClassNamespaces, c.features.linux().Namespaces, name, "this namespace") {
		switch name {
		case "time":
			c.need(ClassNamespaces, "time-namespace", value)
		case "pid", "network", "mount", "ipc", "uts", "user", "cgroup":
		default:
			c.add(ClassNamespaces, value, "the runtime spec knows no such namespace")
		}
	}
	if c.host.known() && c.host.Namespaces != nil && !slices.Contains(c.host.Namespaces, name) {
		c.lacksHost(ClassNamespaces, value, "the kernel has no such namespace")
	}
}

func (c *checker) clock(name []byte) {
	if s := string(name); s != "monotonic" && s != "boottime" {
		c.add(ClassNamespaces, name, "only monotonic and boottime have an offset")
	}
}

func (c *checker) rdt(value []byte) {
	if c.host.known() && !c.host.RDT {
		c.lacksHost(ClassRDT, value, "no resctrl file system is mounted")
	}
}

func (c *checker) memoryMode(value []byte) {
	p := c.features.linux().MemoryPolicy
	if p == nil || !c.listed(ClassScheduling, p.Modes, string(value), "this mode") {
		c.among(ClassScheduling, value, "MPOL_DEFAULT", "MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED", "MPOL_PREFERRED_MANY", "MPOL_LOCAL")
	}
	switch string(value) {
	case "MPOL_PREFERRED_MANY":
		c.kernel(ClassScheduling, value, 5, 15)
	case "MPOL_WEIGHTED_INTERLEAVE":
		c.kernel(ClassScheduling, value, 6, 9)
	}
}

func (c *checker) memoryFlag(value []byte) {
	p := c.features.linux().MemoryPolicy
	if p == nil || !c.listed(ClassScheduling, p.Flags, string(value), "this flag") {
		c.among(ClassScheduling, value, "MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES")
	}
}

// among refuses a value that the runtime spec does not have.
func (c *checker) among(class Class, value []byte, list ...string) {
	if !slices.Contains(list, string(value)) {
		c.add(class, value, "the runtime spec knows only "+strings.Join(list, ", "))
	}
}
