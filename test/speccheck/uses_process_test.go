package speccheck

// processUses are members of process, hooks and the top level.
var processUses = []use{
	{
		name: "umask", path: "process.user.umask",
		spec:  []string{`{"process": {"user": {"umask": 23}}}`},
		probe: `umask`, want: `0027`, execBy: []string{"crun"}, execWarned: runcs,
	},
	{
		name: "additional groups", path: "process.user.additionalGids",
		spec:  []string{`{"process": {"user": {"additionalGids": [7, 4000]}}}`},
		probe: `id -G`, want: `\b7 4000\b`,
	},
	{
		name: "capability sets", path: "process.capabilities",
		spec:  []string{`{"process": {"capabilities": {"bounding": ["CAP_NET_RAW"], "permitted": ["CAP_NET_RAW"], "effective": ["CAP_NET_RAW"]}}}`},
		probe: `grep Cap /proc/self/status`, want: `CapEff:\s0+80020eb|CapEff:\s[0-9a-f]{12}20[0-9a-f]{2}`,
	},
	{
		name: "ambient capability", path: "process.capabilities.ambient[0]",
		spec: []string{`{"process": {"user": {"uid": 1000, "gid": 1000},
			"capabilities": {"ambient": ["CAP_CHOWN"], "inheritable": ["CAP_CHOWN"]}}}`},
		probe: `grep CapAmb /proc/self/status`, want: `CapAmb:\s0{15}1\b`,
	},
	{
		name: "capability that nobody knows", path: "process.capabilities.bounding[7]",
		spec:  []string{`{"process": {"capabilities": {"bounding": ["CAP_BERTH"]}}}`},
		probe: `true`, want: `^$`, by: nobody,
	},
	{
		name: "rlimit", path: "process.rlimits[0]",
		// Not RLIMIT_NOFILE: Go raises its own in runc's child, which may win.
		spec:  []string{`{"process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 77, "hard": 88}]}}`},
		probe: `grep core /proc/self/limits`, want: `\b77\s+88\b`,
	},
	{
		name: "rlimit that nobody knows", path: "process.rlimits[0].type",
		spec:  []string{`{"process": {"rlimits": [{"type": "RLIMIT_BERTH", "soft": 1, "hard": 1}]}}`},
		probe: `true`, want: `^$`, by: nobody,
	},
	{
		name: "no new privileges", path: "process.noNewPrivileges",
		spec:  []string{`{"process": {"noNewPrivileges": true}}`},
		probe: `grep NoNewPrivs /proc/self/status`, want: `NoNewPrivs:\s1`,
	},
	{
		name: "OOM score", path: "process.oomScoreAdj",
		spec:  []string{`{"process": {"oomScoreAdj": 555}}`},
		probe: `cat /proc/self/oom_score_adj`, want: `555\n`, execBy: nobody, execWarned: []string{"runc-1.1", "runc-1.5", "crun"},
	},
	{
		name: "scheduler policy", path: "process.scheduler",
		spec:  []string{`{"process": {"scheduler": {"policy": "SCHED_BATCH"}}}`},
		probe: `awk '{print "policy", $41}' /proc/self/stat`, want: `policy 3\n`, by: newRunc,
	},
	{
		name: "nice value", path: "process.scheduler",
		spec:  []string{`{"process": {"scheduler": {"policy": "SCHED_OTHER", "nice": 7}}}`},
		probe: `awk '{print "nice", $19}' /proc/self/stat`, want: `nice 7\n`, by: newRunc,
	},
	{
		name: "I/O priority", path: "process.ioPriority",
		spec:  []string{`{"process": {"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}}}`},
		probe: `ionice`, want: `idle`, by: newRunc,
	},
	{
		name: "AppArmor profile", path: "process.apparmorProfile",
		spec:  []string{`{"process": {"apparmorProfile": "berth-test"}}`},
		probe: `cat /proc/self/attr/current`, want: `berth-test`, needs: lsm("apparmor"),
	},
	{
		name: "SELinux label", path: "process.selinuxLabel",
		spec:  []string{`{"process": {"selinuxLabel": "system_u:system_r:container_t:s0"}}`},
		probe: `cat /proc/self/attr/current`, want: `container_t`, needs: lsm("selinux"),
	},
	{
		name: "command line of Windows", path: "process.commandLine",
		spec:  []string{`{"process": {"commandLine": "cmd.exe /c berth"}}`},
		probe: `true`, want: `cmd.exe`, by: nobody,
	},
	{
		name: "user name of Windows", path: "process.user.username",
		spec:  []string{`{"process": {"user": {"username": "nobody"}}}`},
		probe: `id -u`, want: `nobody`, by: nobody,
	},
	{
		name: "host name", path: "hostname",
		spec:  []string{`{"hostname": "harbour"}`},
		probe: `hostname`, want: `harbour\n`,
	},
	{
		name: "domain name", path: "domainname",
		spec:  []string{`{"domainname": "berth.test"}`},
		probe: `cat /proc/sys/kernel/domainname`, want: `berth.test\n`, by: []string{"runc-1.5", "crun"},
	},
	{
		name: "read-only root", path: "root.readonly",
		spec:  []string{`{"root": {"readonly": true}}`},
		probe: `(: >/file) 2>&1`, want: `Read-only file system`,
	},
	hookUse("prestart"), hookUse("createRuntime"), hookUse("createContainer"),
	hookUse("poststart"), hookUse("poststop"),
	{
		name: "hook startContainer", path: "hooks.startContainer",
		spec:  []string{`{"hooks": {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "PATH=/bin; echo hooked >/tmp/hook"]}]}}`},
		probe: `cat /tmp/hook 2>&1`, want: `hooked`,
	},
	{
		name: "hook of a kind that nobody knows", path: "hooks.beforeStart",
		spec:  []string{`{"hooks": {"beforeStart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo x >$DIR/hook"]}]}}`},
		probe: `true`, after: fileThere("hook"), by: nobody,
	},
}

// hookUse is a hook that runs on the host.
func hookUse(kind string) use {
	// A hook that does not read what it is given ends crun, by SIGPIPE.
	return use{
		name: "hook " + kind, path: "hooks." + kind,
		spec:  []string{`{"hooks": {"` + kind + `": [{"path": "/bin/sh", "args": ["sh", "-c", "cat >$DIR/hook"], "env": ["PATH=/bin:/usr/bin"]}]}}`},
		probe: `true`, after: fileThere("hook"),
	}
}

// schemaUses are mistakes: members and values that the schema does not have.
// No runtime can do what they ask.
var schemaUses = []use{
	mistake("member that the schema does not have", "hostnam", `{"hostnam": "harbour"}`),
	mistake("misspelt member of process", "process.noNewPrivilege", `{"process": {"noNewPrivilege": true}}`),
	mistake("misspelt member of linux", "linux.maskedPath", `{"linux": {"maskedPath": ["/proc/meminfo"]}}`),
	mistake("misspelt member of memory", "linux.resources.memory.limits", `{"linux": {"resources": {"memory": {"limits": 1048576}}}}`),
	mistake("misspelt member of a mount", "mounts[3].option",
		`{"mounts": [{"destination": "/m", "type": "tmpfs", "source": "tmpfs", "option": ["ro"]}]}`),
	mistake("misspelt member of seccomp", "linux.seccomp.syscall",
		`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscall": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}}}`),
	{
		// Go's decoder takes it, others do not.
		name: "member in another case", path: "process.NoNewPrivileges",
		spec:  []string{`{"process": {"NoNewPrivileges": true}}`},
		probe: `grep NoNewPrivs /proc/self/status`, want: `NoNewPrivs:\s1`, by: nobody,
	},
	mistake("member of another platform", "windows", `{"windows": {"layerFolders": ["c"]}}`),
	mistake("text for a number", "linux.resources.pids.limit", `{"linux": {"resources": {"pids": {"limit": "10"}}}}`),
	mistake("number that does not fit", "linux.resources.memory.limit", `{"linux": {"resources": {"memory": {"limit": 1e30}}}}`),
	mistake("version of the future", "ociVersion", `{"ociVersion": "9.0.0"}`),
	{
		name: "member given twice", path: "hostname",
		spec:  []string{`{"hostname": "once"}`},
		text:  []string{`"hostname":"once"`, `"hostname":"once","hostname":"twice"`},
		probe: `true`, want: `^$`, by: nobody,
	},
}

func mistake(name, path, spec string) use {
	return use{name: name, path: path, spec: []string{spec}, probe: `true`, want: `^$`, by: nobody}
}
