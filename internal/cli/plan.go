package cli

import (
	"crypto/rand"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/runspec"
	"github.com/berthd/berth/internal/logfile"
)

// plan is a container to be made, as the command line says.
type plan struct {
	spec runspec.Options
	// image is the name as given, empty with a directory or a ready spec.
	image, platform, pull string
	// specFile is a ready specification, instead of spec and image.
	specFile string

	snapshotter       string
	snapshotterLabels map[string]string
	labels            map[string]string
	runtime           string
	runtimeOptions    typeurl.Any // nil for none
	stopSignal        string
	stopTimeout       *int // seconds
	cidFile, pidFile  string
	dumpFile          string
	// log is the file that gets the output of a container in the background.
	log      string
	detached bool
	// logConfig is how large the log may be, as the user says; nil for the
	// default. It has no path.
	logConfig *logfile.Config
	// remove: the container goes with its end in the foreground.
	remove bool

	net                 netPlan
	sandbox             string
	syncFS, remapLabels bool
	// volatile: nothing of the root file system is ever synced to the disk.
	volatile bool
	restart  runspec.Restart
}

// maxStopTimeout, in seconds, is a year: more cannot be meant.
const maxStopTimeout = 365 * 24 * 3600

// newPlan reads the flags and arguments of run and create.
func newPlan(cmd *cli.Command) (*plan, error) {
	p := &plan{
		platform: cmd.String("platform"), pull: cmd.String("pull"), specFile: cmd.String("config"),
		snapshotter: cmd.String("snapshotter"), runtime: cmd.String("runtime"),
		stopSignal: cmd.String("stop-signal"),
		cidFile:    cmd.String("cidfile"), pidFile: cmd.String("pid-file"), dumpFile: cmd.String("dump-config"),
	}
	p.spec.ID = cmd.String("name")
	args := cmd.Args().Slice()
	switch {
	case p.specFile != "":
		if len(args) > 1 {
			return nil, usageError("with --config the only argument is the container's name")
		}
		if len(args) == 1 {
			p.spec.ID = args[0]
		}
	case len(args) == 0 || args[0] == "":
		return nil, usageError("an image is missing (berth %s IMAGE [COMMAND])", cmd.Name)
	case cmd.Bool("rootfs"):
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return nil, fmt.Errorf("rootfs %q: %w", args[0], err)
		}
		p.spec.Rootfs, p.spec.Process.Args = dir, args[1:]
	default:
		p.image, p.spec.Process.Args = args[0], args[1:]
	}
	if p.spec.ID == "" {
		p.spec.ID = newID()
	}
	if err := runspec.CheckID(p.spec.ID); err != nil {
		return nil, err
	}
	for _, read := range []func(*cli.Command) error{
		p.readProcess, p.readIdentity, p.readFiles, p.readIsolation, p.readSecurity, p.readLimits, p.readRuntime,
		p.readNetwork,
	} {
		if err := read(cmd); err != nil {
			return nil, err
		}
	}
	return p, p.spec.Check()
}

// newID is a name that nobody gave: 12 hex digits.
func newID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (p *plan) readProcess(cmd *cli.Command) error {
	proc := &p.spec.Process
	var err error
	if proc.Env, err = readEnv(cmd); err != nil {
		return err
	}
	proc.Cwd, proc.User, proc.Groups = cmd.String("workdir"), cmd.String("user"), cmd.StringSlice("group-add")
	proc.Entrypoint, proc.SetEntrypoint = cmd.String("entrypoint"), cmd.IsSet("entrypoint")
	proc.Terminal = cmd.Bool("tty")
	if cmd.Bool("init") {
		var err error
		if proc.Init, err = findInit(); err != nil {
			return err
		}
	}
	for _, s := range cmd.StringSlice("ulimit") {
		r, err := runspec.ParseUlimit(s)
		if err != nil {
			return err
		}
		proc.Rlimits = append(proc.Rlimits, r)
	}
	if s := cmd.String("rlimit-nofile"); s != "" {
		r, err := runspec.ParseRlimit("RLIMIT_NOFILE", s)
		if err != nil {
			return err
		}
		proc.Rlimits = append(proc.Rlimits, r)
	}
	if cmd.IsSet("oom-score-adj") {
		n := cmd.Int("oom-score-adj")
		if n < -1000 || n > 1000 {
			return usageError("--oom-score-adj %d: use -1000 to 1000", n)
		}
		proc.OOMScoreAdj = &n
	}
	if p.stopSignal != "" {
		if _, err := runspec.ParseSignal(p.stopSignal); err != nil {
			return err
		}
	}
	if cmd.IsSet("stop-timeout") {
		n := cmd.Int("stop-timeout")
		if n < 0 || n > maxStopTimeout {
			return usageError("--stop-timeout %d: use a number of seconds from 0", n)
		}
		p.stopTimeout = &n
	}
	return nil
}

// readEnv reads --env-file and --env; a variable given by both is --env's.
func readEnv(cmd *cli.Command) ([]string, error) {
	var env []string
	for _, name := range cmd.StringSlice("env-file") {
		vars, err := runspec.ReadEnvFile(name)
		if err != nil {
			return nil, err
		}
		env = append(env, vars...)
	}
	vars, err := runspec.ParseEnv(cmd.StringSlice("env"))
	if err != nil {
		return nil, err
	}
	return append(env, vars...), nil
}

func (p *plan) readIdentity(cmd *cli.Command) (err error) {
	if p.labels, err = runspec.ParseLabels(cmd.StringSlice("label"), ""); err != nil {
		return err
	}
	annotations, err := runspec.ParseLabels(cmd.StringSlice("annotation"), "")
	if err != nil {
		return err
	}
	p.spec.Annotations = maps.Clone(p.labels)
	maps.Copy(p.spec.Annotations, annotations)
	p.sandbox, p.syncFS, p.remapLabels = cmd.String("sandbox"), cmd.Bool("sync-fs"), cmd.Bool("remap-labels")
	if s := cmd.String("restart"); s != "" {
		if p.restart, err = runspec.ParseRestart(s); err != nil {
			return err
		}
	}
	if p.snapshotterLabels, err = runspec.ParseLabels(cmd.StringSlice("snapshotter-label"), "true"); err != nil {
		return err
	}
	switch p.pull {
	case "", "missing", "always", "never":
		return nil
	}
	return usageError("--pull %q: use always, missing or never", p.pull)
}

func (p *plan) readFiles(cmd *cli.Command) error {
	for _, kind := range []struct {
		flag  string
		parse func(string) (specs.Mount, error)
	}{{"volume", runspec.ParseVolume}, {"mount", runspec.ParseMount}, {"tmpfs", runspec.ParseTmpfs}} {
		for _, s := range cmd.StringSlice(kind.flag) {
			m, err := kind.parse(s)
			if err != nil {
				return err
			}
			p.spec.Mounts = append(p.spec.Mounts, m)
		}
	}
	p.volatile = cmd.Bool("volatile")
	for _, s := range cmd.StringSlice("gpus") {
		n, err := runspec.ParseGPU(s)
		if err != nil {
			return err
		}
		p.spec.GPUs = append(p.spec.GPUs, n)
	}
	for _, s := range cmd.StringSlice("device") {
		if runspec.IsCDI(s) {
			p.spec.CDI = append(p.spec.CDI, s)
			continue
		}
		d, err := runspec.ParseDevice(s)
		if err != nil {
			return err
		}
		p.spec.Devices = append(p.spec.Devices, d)
	}
	var err error
	if s := cmd.String("shm-size"); s != "" {
		if p.spec.ShmSize, err = runspec.ParseBytes(s); err != nil {
			return err
		}
	}
	p.spec.Isolation.ReadOnly = cmd.Bool("read-only")
	p.spec.Isolation.Propagation = cmd.String("rootfs-propagation")
	return nil
}

func (p *plan) readIsolation(cmd *cli.Command) error {
	iso := &p.spec.Isolation
	iso.Hostname = cmd.String("hostname")
	var err error
	if iso.UIDMaps, err = runspec.ParseIDMaps(cmd.StringSlice("uidmap")); err != nil {
		return err
	}
	if iso.GIDMaps, err = runspec.ParseIDMaps(cmd.StringSlice("gidmap")); err != nil {
		return err
	}
	if p.remapLabels && len(iso.UIDMaps) == 0 {
		return usageError("--remap-labels needs --uidmap and --gidmap")
	}
	for flag, shared := range map[string]*bool{"pid": &iso.HostPID, "ipc": &iso.HostIPC, "uts": &iso.HostUTS} {
		switch v := cmd.String(flag); v {
		case "", "private":
		case "host":
			*shared = true
		default:
			return usageError("--%s %q: use host or private", flag, v)
		}
	}
	for _, s := range cmd.StringSlice("with-ns") {
		ns, err := runspec.ParseNamespace(s)
		if err != nil {
			return err
		}
		iso.Join = append(iso.Join, ns)
	}
	iso.Cgroup, iso.SetCgroup = cmd.String("cgroup"), cmd.IsSet("cgroup")
	if parent := cmd.String("cgroup-parent"); parent != "" {
		if iso.SetCgroup || cmd.Bool("runc-systemd-cgroup") {
			return usageError("--cgroup-parent excludes --cgroup and --runc-systemd-cgroup")
		}
		iso.Cgroup, iso.SetCgroup = path.Join("/", parent, p.spec.ID), true
	}
	return nil
}

func (p *plan) readSecurity(cmd *cli.Command) error {
	sec := &p.spec.Security
	sec.Privileged, sec.NoHostDevices = cmd.Bool("privileged"), cmd.Bool("privileged-without-host-devices")
	sec.CapAdd, sec.CapDrop = cmd.StringSlice("cap-add"), cmd.StringSlice("cap-drop")
	sec.AllowNewPrivileges = cmd.Bool("allow-new-privs")
	sec.AppArmor, sec.Seccomp = cmd.String("apparmor-profile"), cmd.String("seccomp-profile")
	sec.AppArmorDefault = cmd.String("apparmor-default-profile")
	if !cmd.Bool("seccomp") {
		if sec.Seccomp != "" {
			return usageError("--seccomp=false excludes --seccomp-profile")
		}
		sec.Seccomp = "unconfined"
	}
	for _, opt := range cmd.StringSlice("security-opt") {
		if err := setSecurityOpt(sec, opt); err != nil {
			return err
		}
	}
	return nil
}

// setSecurityOpt reads docker's --security-opt; older scripts have ":" for "=".
func setSecurityOpt(sec *runspec.Security, opt string) error {
	key, value, has := strings.Cut(opt, "=")
	if !has {
		key, value, has = strings.Cut(opt, ":")
	}
	switch {
	case key == "no-new-privileges" && (!has || value == "true"):
		sec.AllowNewPrivileges = false
	case key == "no-new-privileges" && value == "false":
		sec.AllowNewPrivileges = true
	case key == "seccomp" && value != "":
		sec.Seccomp = value
	case key == "apparmor" && value != "":
		sec.AppArmor = value
	case key == "label" && value != "" && value != "disable":
		sec.SelinuxLabel = value
	case key == "systempaths" && value == "unconfined":
		sec.Unmasked = true
	default:
		return usageError("--security-opt %q: use no-new-privileges[=false], seccomp=…, apparmor=…, label=…, or systempaths=unconfined", opt)
	}
	return nil
}

func (p *plan) readLimits(cmd *cli.Command) error {
	r := &p.spec.Resources
	for flag, to := range map[string]*int64{
		"memory": &r.Memory, "memory-reservation": &r.MemoryReservation, "memory-swap": &r.MemorySwap,
	} {
		s := cmd.String(flag)
		if s == "" {
			continue
		}
		if flag == "memory-swap" && s == "-1" {
			*to = -1
			continue
		}
		var err error
		if *to, err = runspec.ParseBytes(s); err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	r.CPUs, r.CPUShares = cmd.Float("cpus"), cmd.Uint64("cpu-shares")
	if r.CPUs < 0 || r.CPUs > 1<<16 {
		return usageError("--cpus %v: use a number like 1.5", r.CPUs)
	}
	r.CPUQuota, r.CPUPeriod = cmd.Int64("cpu-quota"), cmd.Uint64("cpu-period")
	r.CpusetCPUs, r.CpusetMems = cmd.String("cpuset-cpus"), cmd.String("cpuset-mems")
	r.Pids, r.RDTClass = cmd.Int64("pids-limit"), cmd.String("rdt-class")
	r.BlockIOClass, r.BlockIOConfig = cmd.String("blockio-class"), cmd.String("blockio-config-file")
	return nil
}

// readRuntime makes the options of the runtime. They stay with the container,
// so that a later start has them too.
func (p *plan) readRuntime(cmd *cli.Command) error {
	var given []string
	for _, flag := range []string{"runc-binary", "runc-root", "runc-systemd-cgroup", "no-pivot"} {
		if cmd.IsSet(flag) {
			given = append(given, "--"+flag)
		}
	}
	file := cmd.String("runtime-config-path")
	if len(given) > 0 && (file != "" || !takesRuncOptions(p.runtime)) {
		return usageError("%s: only runc's kind of runtime takes this (leave it out, or --runtime and --runtime-config-path)", strings.Join(given, ", "))
	}
	if file != "" {
		if p.runtime == "" {
			return usageError("--runtime-config-path needs --runtime: runc's kind has no such file")
		}
		return p.setRuntimeOptions(&runtimeoptions.Options{ConfigPath: file})
	}
	opts := &runcoptions.Options{
		BinaryName: cmd.String("runc-binary"), Root: cmd.String("runc-root"),
		SystemdCgroup: cmd.Bool("runc-systemd-cgroup"), NoPivotRoot: cmd.Bool("no-pivot"),
	}
	if opts.SystemdCgroup && !cmd.IsSet("cgroup") {
		return errors.New("--runc-systemd-cgroup needs --cgroup slice:prefix:name")
	}
	if iso := &p.spec.Isolation; len(iso.UIDMaps) > 0 {
		// The streams are the mapped root's, so that it can open them again.
		opts.IoUid, _ = runspec.HostID(iso.UIDMaps, 0)
		opts.IoGid, _ = runspec.HostID(iso.GIDMaps, 0)
	} else if len(given) == 0 {
		return nil
	}
	return p.setRuntimeOptions(opts)
}

// takesRuncOptions says whether a runtime's options are those of runc's shims.
func takesRuncOptions(runtime string) bool {
	switch filepath.Base(runtime) {
	case ".", "io.containerd.runc.v2", "io.containerd.berth.v2", "containerd-shim-runc-v2", "containerd-shim-berth-v2":
		return true
	}
	return false
}

// findInit finds an init program of the host that runs in any container.
func findInit() (string, error) {
	for _, name := range []string{"tini-static", "docker-init", "tini", "catatonit"} {
		file, err := exec.LookPath(name)
		if err == nil {
			if file, err = filepath.EvalSymlinks(file); err == nil && static(file) {
				return file, nil
			}
		}
	}
	return "", errors.New("--init: no static tini-static, docker-init, tini or catatonit in the path (install the package tini)")
}

// static says that a program needs no loader and no library.
func static(file string) bool {
	f, err := elf.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

func (p *plan) setRuntimeOptions(opts any) (err error) {
	if p.runtimeOptions, err = typeurl.MarshalAny(opts); err != nil {
		return fmt.Errorf("runtime options: %w", err)
	}
	return nil
}
