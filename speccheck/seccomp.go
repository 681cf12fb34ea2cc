package speccheck

import (
	"slices"
	"strings"
)

func (c *checker) seccomp(value []byte) {
	if c.host.known() && !c.host.Seccomp {
		c.lacksHost(ClassSeccomp, value, "the kernel has no seccomp filters")
	}
}

// hostActions are the kernel's names of the actions
// (/proc/sys/kernel/seccomp/actions_avail).
var hostActions = map[string]string{
	"SCMP_ACT_KILL": "kill_thread", "SCMP_ACT_KILL_THREAD": "kill_thread", "SCMP_ACT_KILL_PROCESS": "kill_process",
	"SCMP_ACT_TRAP": "trap", "SCMP_ACT_ERRNO": "errno", "SCMP_ACT_TRACE": "trace", "SCMP_ACT_ALLOW": "allow",
	"SCMP_ACT_LOG": "log", "SCMP_ACT_NOTIFY": "user_notif",
}

func (c *checker) seccompAction(value []byte) {
	name := string(value)
	if name == "SCMP_ACT_NOTIFY" && c.relations.notify.path == "" {
		c.relations.notify = c.here(value)
	}
	if !c.listed(ClassSeccomp, c.features.seccomp().Actions, name, "this action") {
		switch name {
		case "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD":
			c.need(ClassSeccomp, "seccomp.kill", value)
		case "SCMP_ACT_NOTIFY":
			c.need(ClassSeccomp, "seccomp.notify", value)
		default:
			if hostActions[name] == "" {
				c.add(ClassSeccomp, value, "the runtime spec knows no such action")
			}
		}
	}
	if a := hostActions[name]; a != "" && c.host.known() && c.host.SeccompActions != nil && !slices.Contains(c.host.SeccompActions, a) {
		c.lacksHost(ClassSeccomp, value, "the kernel does not have this action")
	}
}

func (c *checker) seccompOperator(value []byte) {
	if !c.listed(ClassSeccomp, c.features.seccomp().Operators, string(value), "this operator") {
		c.among(ClassSeccomp, value, "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ")
	}
}

var seccompArches = strings.Fields(`SCMP_ARCH_X86 SCMP_ARCH_X86_64 SCMP_ARCH_X32 SCMP_ARCH_ARM SCMP_ARCH_AARCH64 SCMP_ARCH_MIPS
SCMP_ARCH_MIPS64 SCMP_ARCH_MIPS64N32 SCMP_ARCH_MIPSEL SCMP_ARCH_MIPSEL64 SCMP_ARCH_MIPSEL64N32 SCMP_ARCH_PPC SCMP_ARCH_PPC64
SCMP_ARCH_PPC64LE SCMP_ARCH_S390 SCMP_ARCH_S390X SCMP_ARCH_PARISC SCMP_ARCH_PARISC64 SCMP_ARCH_RISCV64 SCMP_ARCH_LOONGARCH64
SCMP_ARCH_M68K SCMP_ARCH_SH SCMP_ARCH_SHEB`)

func (c *checker) seccompArch(value []byte) {
	if !c.listed(ClassSeccomp, c.features.seccomp().Archs, string(value), "this architecture") {
		c.among(ClassSeccomp, value, seccompArches...)
	}
}

// seccompFlag: what the runtime knows it may still not be able to do, with its
// libseccomp and this kernel.
func (c *checker) seccompFlag(value []byte) {
	s := c.features.seccomp()
	list := s.SupportedFlags
	if list == nil {
		list = s.KnownFlags
	}
	if c.listed(ClassSeccomp, list, string(value), "this flag, with its libseccomp and this kernel") {
		return
	}
	switch string(value) {
	case "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
		c.need(ClassSeccomp, "seccomp.waitKillable", value)
		c.kernel(ClassSeccomp, value, 5, 19)
	case "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC":
		c.need(ClassSeccomp, "seccomp.flags", value)
	default:
		c.add(ClassSeccomp, value, "the runtime spec knows no such flag")
	}
}
