package speccheck

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// never stands in the table for what no version of a runtime supports.
const never = "never"

// capability is something that a runtime may support or not.
type capability struct {
	name, what string
	// spec is the version of the runtime spec that has it first; empty: it is no
	// matter of the spec.
	spec string
	// built is the part that the runtime has to be built with.
	built string
	// runc, crun, youki, runsc and kata are the first versions that support it;
	// never, or empty where it is not known.
	runc, crun, youki, runsc, kata string
	// mild: what is lost does no harm.
	mild bool
	// doc asks the features document, which may not say.
	doc func(*features.Features) answer
}

// since is the first version of a runtime that supports it.
func (k *capability) since(runtime string) string {
	switch runtime {
	case "runc":
		return k.runc
	case "crun":
		return k.crun
	case "youki":
		return k.youki
	case "runsc":
		return k.runsc
	case "kata":
		return k.kata
	}
	return ""
}

func (k *capability) byVersion(r Runtime) answer {
	since := k.since(r.Name)
	switch since {
	case "":
		return unknown
	case never:
		return no
	}
	have, ok := parseVersion(r.Version)
	if !ok {
		return unknown
	}
	want, _ := parseVersion(since)
	return said(!have.less(want))
}

// capabilityTable: sources are in docs/speccheck.md. Where runc has 1.0.0, all
// versions that are known here have it.
var capabilityTable = []capability{
	{name: "domainname", what: "a domain name", spec: "1.1.0", runc: "1.2.0", crun: "1.7", youki: "0.0.4", kata: never},
	{name: "umask", what: "an umask", spec: "1.1.0", runc: "1.0.0", crun: "0.12.2", kata: never},
	// runc takes the umask and the OOM score of an exec from the container.
	{name: "exec.umask", what: "an umask of the exec's own", spec: "1.1.0", runc: never, crun: "0.12.2", kata: never, mild: true},
	{name: "exec.oomScoreAdj", what: "an OOM score of the exec's own", runc: never, crun: never, kata: never, mild: true},
	{name: "personality", what: "a personality", spec: "1.0.2", runc: "1.2.0", crun: "0.11", youki: "0.5.6", kata: never},
	{name: "personality.flags", what: "flags of the personality", runc: never},
	{name: "scheduler", what: "scheduler settings", spec: "1.1.0", runc: "1.2.0", crun: "1.8.5", youki: "0.3.2", kata: never},
	{name: "exec.scheduler", what: "scheduler settings of an exec", spec: "1.1.0", runc: "1.3.0", kata: never},
	{name: "ioPriority", what: "an I/O priority", spec: "1.1.0", runc: "1.2.0", crun: "1.8.6", kata: never},
	{name: "exec.ioPriority", what: "the I/O priority of an exec", spec: "1.1.0", runc: "1.3.0", kata: never},
	{name: "execCPUAffinity", what: "the CPU affinity of execs", spec: "1.2.1", runc: "1.3.0", crun: "1.19", youki: "0.5.4", kata: never},
	{name: "memoryPolicy", what: "a NUMA memory policy", spec: "1.3.0", runc: "1.4.0", crun: "1.24", youki: "0.6.0", kata: never, doc: func(f *features.Features) answer {
		return listGiven(f.Linux != nil && f.Linux.MemoryPolicy != nil)
	}},
	{name: "time-namespace", what: "time namespaces", spec: "1.1.0", runc: "1.2.0", crun: "1.8.4", youki: "0.7.0", kata: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.Namespaces == nil {
			return unknown
		}
		return said(slices.Contains(f.Linux.Namespaces, "time"))
	}},
	{name: "idmap", what: "id-mapped mounts", spec: "1.1.0", runc: "1.2.0", crun: "1.9", kata: never, doc: idmapEnabled},
	{name: "mount.idmap", what: "the mount option idmap", spec: "1.2.0", runc: "1.2.0", crun: "1.4", kata: never, doc: idmapEnabled},
	{name: "mount.ridmap", what: "the mount option ridmap", spec: "1.2.0", runc: "1.2.0", crun: "1.9", kata: never, doc: idmapEnabled},
	{name: "mount.idmap=", what: "mappings in a mount option", runc: never, crun: "1.4.5", youki: never, runsc: never, kata: never},
	{name: "idmap.other", what: "id-mapped mounts of anything but bind mounts", runc: never, crun: "1.9", kata: never},
	{name: "mount.nosymfollow", what: "the mount option nosymfollow", runc: "1.1.0", crun: "1.10"},
	{name: "rootfsPropagation.shared", what: "a root that shares its mounts", spec: "1.0.0", runc: "1.3.3", crun: "0.1"},
	{name: "mount.recursive", what: "recursive mount options", spec: "1.1.0", runc: "1.1.0", crun: "1.4"},
	{name: "hooks.create", what: "the hooks createRuntime, createContainer and startContainer", spec: "1.0.2", runc: "1.0.0", crun: "0.15"},
	{name: "netDevices", what: "network devices", spec: "1.3.0", runc: "1.4.0", crun: "1.22", youki: "0.6.0", kata: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.NetDevices == nil {
			return unknown
		}
		return saidOr(f.Linux.NetDevices.Enabled)
	}},
	{name: "apparmor", what: "AppArmor", built: "apparmor", runsc: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.Apparmor == nil {
			return unknown
		}
		return saidOr(f.Linux.Apparmor.Enabled)
	}},
	{name: "selinux", what: "SELinux", built: "selinux", runsc: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.Selinux == nil {
			return unknown
		}
		return saidOr(f.Linux.Selinux.Enabled)
	}},
	{name: "seccomp", what: "seccomp", built: "seccomp", doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.Seccomp == nil {
			return unknown
		}
		return saidOr(f.Linux.Seccomp.Enabled)
	}},
	{name: "seccomp.defaultErrnoRet", what: "another default errno", spec: "1.1.0", runc: "1.0.0", crun: "0.19", kata: never},
	{name: "seccomp.kill", what: "this action", spec: "1.0.2", runc: "1.1.0", crun: "0.15"},
	{name: "seccomp.notify", what: "a seccomp listener", spec: "1.1.0", runc: "1.1.0", crun: "0.19", kata: never},
	{name: "seccomp.flags", what: "seccomp flags", runc: "1.2.0", crun: "0.9"},
	{name: "seccomp.waitKillable", what: "this seccomp flag", runc: "1.5.0", crun: "1.6"},
	{name: "rdt", what: "Intel RDT", spec: "1.0.0", runc: "1.0.0", crun: "1.10", youki: "0.1.0", runsc: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.IntelRdt == nil {
			return unknown
		}
		return saidOr(f.Linux.IntelRdt.Enabled)
	}},
	{name: "rdt.closID", what: "an RDT class of service", spec: "1.0.2", runc: "1.1.0", crun: "1.10", runsc: never, kata: never},
	{name: "rdt.schemata", what: "RDT schemata", spec: "1.3.0", runc: "1.4.0", runsc: never, kata: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.IntelRdt == nil {
			return unknown
		}
		return saidOr(f.Linux.IntelRdt.Schemata)
	}},
	{name: "rdt.monitoring", what: "RDT monitoring", spec: "1.3.0", runc: "1.4.0", crun: "1.24", runsc: never, kata: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.IntelRdt == nil {
			return unknown
		}
		return saidOr(f.Linux.IntelRdt.Monitoring)
	}},
	{name: "memory.kernel", what: "kernel memory limits", spec: "1.0.0", runc: never, crun: "0.1"},
	{name: "memory.useHierarchy", what: "a choice of hierarchical memory cgroups", spec: "1.0.2", runc: never, crun: "1.0", kata: never},
	{name: "memory.checkBeforeUpdate", what: "a check before the memory limit is lowered", spec: "1.1.0", runc: "1.2.0", crun: "1.7", kata: never},
	{name: "cpu.burst", what: "CPU bursts", spec: "1.1.0", runc: "1.2.0", crun: "1.11", youki: "0.0.4", kata: never},
	{name: "cpu.idle", what: "idle CPU cgroups", spec: "1.1.0", runc: "1.2.0", crun: "1.5", kata: never},
	{name: "blockIO.bfq", what: "the block I/O weights of BFQ in cgroup v1", spec: "1.0.0", runc: "1.0.0", crun: never},
	{name: "rdma", what: "RDMA limits", spec: "1.0.0", runc: "1.1.0", crun: never, youki: never, runsc: never, kata: never, doc: func(f *features.Features) answer {
		if f.Linux == nil || f.Linux.Cgroup == nil {
			return unknown
		}
		return saidOr(f.Linux.Cgroup.Rdma)
	}},
	{name: "unified", what: "unified cgroup limits", spec: "1.0.3", runc: "1.0.0", crun: "0.15", kata: never},
	{name: "update.devices", what: "a change of the device rules of a running container", runc: never, mild: true},
	{name: "update.blockIO-device", what: "a change of per-device block I/O limits of a running container", runc: "1.3.3"},
	{name: "update.other", what: "a change of this limit of a running container", runc: never},
	{name: "checkpoint", what: "checkpoints", built: "criu", kata: never, doc: func(f *features.Features) answer {
		switch f.Annotations["org.opencontainers.runc.checkpoint.enabled"] {
		case "true":
			return yes
		case "false":
			return no
		}
		return unknown
	}},
}

func idmapEnabled(f *features.Features) answer {
	if f.Linux == nil || f.Linux.MountExtensions == nil || f.Linux.MountExtensions.IDMap == nil {
		return unknown
	}
	return saidOr(f.Linux.MountExtensions.IDMap.Enabled)
}

// listGiven: a list that is there says yes, one that is not says nothing.
func listGiven(there bool) answer {
	if there {
		return yes
	}
	return unknown
}

func capabilityNamed(name string) *capability {
	for i := range capabilityTable {
		if capabilityTable[i].name == name {
			return &capabilityTable[i]
		}
	}
	// A rule that names what the table does not have: a test finds it.
	return &capability{name: name, what: name}
}
