package cli

import "github.com/urfave/cli/v3"

// containerFlags are the flags of run and create. The names are containerd's
// own tool's and docker's; where both have one, the meaning is docker's.
func containerFlags() []cli.Flag {
	var flags []cli.Flag
	for _, group := range []struct {
		category string
		flags    []cli.Flag
	}{
		{"Process", processFlags()},
		{"Container", identityFlags()},
		{"Files", fileFlags()},
		{"Isolation", isolationFlags()},
		{"Security", securityFlags()},
		{"Limits", limitFlags()},
		{"Runtime", runtimeFlags()},
	} {
		for _, f := range group.flags {
			if c, ok := f.(interface{ SetCategory(string) }); ok {
				c.SetCategory(group.category)
			}
		}
		flags = append(flags, group.flags...)
	}
	return flags
}

func str(name, usage string, aliases ...string) cli.Flag {
	return &cli.StringFlag{Name: name, Aliases: aliases, Usage: usage}
}

func list(name, usage string, aliases ...string) cli.Flag {
	return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
}

func yes(name, usage string, aliases ...string) cli.Flag {
	return &cli.BoolFlag{Name: name, Aliases: aliases, Usage: usage}
}

func processFlags() []cli.Flag {
	return []cli.Flag{
		list("env", "set `KEY=VALUE`, or KEY to the value it has here", "e"),
		list("env-file", "read variables from a `FILE`, one a line"),
		str("workdir", "working `DIR` in the container (default: the image's, else /)", "w", "cwd"),
		str("user", "`USER[:GROUP]` by name or number (default: the image's, else root)", "u"),
		list("group-add", "further `GROUP` of the process"),
		str("entrypoint", "`PROGRAM` instead of the image's entrypoint"),
		yes("tty", "give the process a terminal", "t"),
		yes("init", "let a small init (tini) start the command, forward signals and reap"),
		list("ulimit", "`NAME=SOFT[:HARD]`, e.g. nofile=1024:4096 (default: nofile=1024)"),
		str("rlimit-nofile", "limit of open files, `SOFT[:HARD]`"),
		&cli.IntFlag{Name: "oom-score-adj", Usage: "the kernel's preference to kill, `N` from -1000 to 1000"},
		str("stop-signal", "`SIGNAL` that asks the process to end, by name or number (default: the image's, else SIGTERM)"),
		&cli.IntFlag{Name: "stop-timeout", Usage: "`SECONDS` after the stop signal until KILL (default: 10)"},
	}
}

func identityFlags() []cli.Flag {
	return []cli.Flag{
		str("name", "`NAME` of the container (default: 12 random digits)"),
		list("label", "`KEY=VALUE` to find the container by; the OCI runtime gets it too", "l"),
		list("annotation", "`KEY=VALUE` for the OCI runtime"),
		str("cidfile", "write the container's name to a `FILE`"),
		str("pid-file", "write the process id to a `FILE`"),
		str("pull", "fetch the image: `WHEN` is always, missing or never (default: missing)"),
		str("platform", "use the image for a `PLATFORM`, e.g. linux/arm64 (default: this host's)"),
		&cli.StringFlag{Name: "snapshotter", Usage: "`NAME` of the snapshotter (default: the namespace's, else overlayfs)", Sources: cli.EnvVars("CONTAINERD_SNAPSHOTTER")},
		list("snapshotter-label", "`KEY=VALUE` on the snapshot"),
		str("config", "use the OCI specification in a `FILE`; no image is named then", "c"),
		str("dump-config", "write the OCI specification to a `FILE`"),
		str("sandbox", "put the container into a sandbox by its `ID`"),
		yes("sync-fs", "write the unpacked image to the disk before it is used"),
		str("restart", "start it again when it ends: `POLICY` is no, always, unless-stopped or on-failure[:COUNT] (default: no)"),
	}
}

func fileFlags() []cli.Flag {
	return []cli.Flag{
		list("volume", "`SOURCE:TARGET[:ro]` shows a path of the host", "v"),
		list("mount", "`type=bind,src=/a,dst=/b[,readonly]`, type tmpfs too"),
		list("tmpfs", "a file system in memory at `TARGET[:OPTIONS]`"),
		list("device", "show a device: `HOST[:CONTAINER[:rwm]]`, or a CDI name"),
		list("gpus", "show a GPU through the host's CDI files: its `NUMBER`, or all"),
		str("shm-size", "size of /dev/shm in `BYTES`, or 128m, 1g (default: 64m)"),
		yes("read-only", "make the root file system read-only"),
		yes("rootfs", "the first argument is a directory, not an image"),
		str("rootfs-propagation", "`MODE` of the root mount (private, slave, shared)"),
		yes("volatile", "never write the root file system to the disk: what --rm does by itself since kernel 5.10"),
	}
}

func isolationFlags() []cli.Flag {
	return []cli.Flag{
		str("hostname", "`NAME` of the host in the container (default: the container's name)"),
		str("network", "`none` (loopback only, the default), host, cni or container:NAME", "net"),
		yes("net-host", "use the host's network (as --network host)"),
		yes("cni", "use the host's CNI network (as --network cni)"),
		list("publish", "lead a port into the container: `[IP:]HOST:CONTAINER[/PROTOCOL]`", "p"),
		list("dns", "ask the name server at an `IP`"),
		list("dns-search", "complete names with a `DOMAIN`"),
		list("dns-option", "an `OPTION` of resolv.conf, e.g. ndots:1"),
		list("add-host", "`NAME:IP` in /etc/hosts"),
		list("uidmap", "map user ids: `CONTAINER:HOST:SIZE`; needs --gidmap"),
		list("gidmap", "map group ids: `CONTAINER:HOST:SIZE`; needs --uidmap"),
		yes("remap-labels", "let the snapshotter map the owners of files, without a copy"),
		str("pid", "`host` uses the host's processes"),
		str("ipc", "`host` uses the host's shared memory and queues"),
		str("uts", "`host` uses the host's name"),
		list("with-ns", "enter a namespace: `TYPE:PATH`"),
		str("cgroup", "`PATH` of the cgroup; empty for the runtime's own (default: /NAMESPACE/NAME)"),
		str("cgroup-parent", "`PATH` under which the cgroup is made"),
	}
}

func securityFlags() []cli.Flag {
	return []cli.Flag{
		yes("privileged", "every capability and device, nothing masked"),
		yes("privileged-without-host-devices", "with --privileged: not the host's devices"),
		list("cap-add", "add a `CAPABILITY` like CAP_NET_ADMIN, or ALL"),
		list("cap-drop", "take a `CAPABILITY` like CAP_MKNOD, or ALL"),
		list("security-opt", "`OPTION`: no-new-privileges[=false], seccomp=unconfined or FILE, apparmor=PROFILE, label=LABEL, systempaths=unconfined"),
		yes("allow-new-privs", "let set-uid programs gain privileges"),
		&cli.BoolFlag{Name: "seccomp", Value: true, Usage: "filter system calls; --seccomp=false lifts it"},
		str("seccomp-profile", "a `FILE` instead of the default filter"),
		str("apparmor-profile", "run under a loaded AppArmor `PROFILE`"),
		str("apparmor-default-profile", "load the default AppArmor profile under a `NAME` and run under it"),
	}
}

func limitFlags() []cli.Flag {
	return []cli.Flag{
		str("memory", "most memory in `BYTES`, or 64m, 2g", "m", "memory-limit"),
		str("memory-reservation", "memory kept under pressure, in `BYTES`"),
		str("memory-swap", "most memory and swap together, in `BYTES`, -1 for no limit"),
		&cli.FloatFlag{Name: "cpus", Usage: "most processors, as a `NUMBER` like 1.5"},
		&cli.Uint64Flag{Name: "cpu-shares", Usage: "relative weight of processor time, `N` (the kernel's default: 1024)"},
		&cli.Int64Flag{Name: "cpu-quota", Usage: "`MICROSECONDS` of processor time in a period (default: no limit)"},
		&cli.Uint64Flag{Name: "cpu-period", Usage: "the period in `MICROSECONDS` (the kernel's default: 100000)"},
		str("cpuset-cpus", "run on `CPUS` like 0-2,4"),
		str("cpuset-mems", "use memory `NODES` like 0,1"),
		&cli.Int64Flag{Name: "pids-limit", Usage: "most processes, `N` (-1: no limit)"},
		str("rdt-class", "`CLASS` of service for cache and memory bandwidth"),
		str("blockio-class", "`CLASS` of block I/O; needs --blockio-config-file"),
		str("blockio-config-file", "`FILE` with the classes of block I/O"),
	}
}

func runtimeFlags() []cli.Flag {
	return []cli.Flag{
		str("runtime", "`NAME` of the runtime, or the path of a shim (default: the namespace's, else io.containerd.runc.v2)"),
		str("runtime-config-path", "configuration `FILE` of a runtime other than runc's kind"),
		str("runc-binary", "OCI runtime `PROGRAM`: its name in the daemon's PATH, or its path (default: runc)"),
		str("runc-root", "the OCI runtime's state `DIR`"),
		yes("runc-systemd-cgroup", "let systemd make the cgroup; needs --cgroup slice:prefix:name"),
		yes("no-pivot", "change the root without pivot_root"),
	}
}

// streamFlags say where the standard streams go.
func streamFlags() []cli.Flag {
	return []cli.Flag{
		yes("interactive", "attach standard input", "i"),
		&cli.StringFlag{Name: "detach-keys", Usage: "`KEYS` that let go of a terminal", Value: defaultDetachKeys},
		yes("null-io", "attach nothing and keep no log"),
		str("log-uri", "send the output to a `URI` (file:///…, fifo:///…)"),
		&cli.StringFlag{Name: "fifo-dir", Usage: "`DIR` for the streams' FIFOs", Value: defaultFIFODir},
	}
}

const defaultDetachKeys = "ctrl-p,ctrl-q"

const defaultFIFODir = "/run/berth/fifo"
