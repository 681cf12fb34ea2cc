package runspec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrNoCommand says that neither the user nor the image names a program.
var ErrNoCommand = errors.New("no command: the image has none (give one after the image)")

// defaultPath is what a process finds programs in where the image says nothing.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build makes the specification. The context carries the containerd namespace.
// Image is the image's configuration, nil where Options.Rootfs is set. Rootfs
// are the mounts of the container's snapshot, read (never written) to find
// users and groups; nil where Options.Rootfs is set.
func Build(ctx context.Context, o *Options, image *ocispec.ImageConfig, rootfs []mount.Mount) (*specs.Spec, error) {
	if image == nil {
		image = &ocispec.ImageConfig{}
	}
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: o.ID}, oci.WithDefaultUnixDevices)
	if err != nil {
		return nil, fmt.Errorf("generate the default spec: %w", err)
	}
	if o.Rootfs != "" {
		spec.Root.Path = o.Rootfs
	}
	b := &builder{ctx: ctx, o: o, image: image, rootfs: rootfs, spec: spec}
	// Security comes after the user and before seccomp, whose default profile
	// follows the capabilities.
	for _, step := range []func() error{
		b.process, b.user, b.isolation, b.mounts, b.userNamespace, b.capabilities, b.devices, b.security,
		b.resources, b.blockIO, b.cdiDevices,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

// builder holds what the steps of Build share.
type builder struct {
	ctx    context.Context
	o      *Options
	image  *ocispec.ImageConfig
	rootfs []mount.Mount
	spec   *specs.Spec
}

func (b *builder) apply(opts ...oci.SpecOpts) error {
	return oci.ApplyOpts(b.ctx, nil, &containers.Container{ID: b.o.ID}, b.spec, opts...)
}

func (b *builder) process() error {
	p, want := b.spec.Process, &b.o.Process
	entrypoint, cmd := b.image.Entrypoint, b.image.Cmd
	if want.SetEntrypoint {
		entrypoint, cmd = nil, nil
		if want.Entrypoint != "" {
			entrypoint = []string{want.Entrypoint}
		}
	}
	if len(want.Args) > 0 {
		cmd = want.Args
	}
	p.Args = slices.Concat(entrypoint, cmd)
	if len(p.Args) == 0 || p.Args[0] == "" {
		return ErrNoCommand
	}
	if want.Init != "" {
		p.Args = append([]string{initPath, "--"}, p.Args...)
	}
	p.Cwd = b.image.WorkingDir
	if want.Cwd != "" {
		p.Cwd = want.Cwd
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("the image's working directory %q is no absolute path (give one: --workdir)", p.Cwd)
	}
	env := b.image.Env
	if !hasKey(env, "PATH") {
		env = append([]string{defaultPath}, env...)
	}
	p.Terminal = want.Terminal
	if want.Terminal && !hasKey(env, "TERM") {
		env = append(slices.Clip(env), "TERM=xterm")
	}
	p.Env = MergeEnv(env, want.Env)
	p.OOMScoreAdj = want.OOMScoreAdj
	if want.Terminal && want.Width > 0 && want.Height > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(want.Width), Height: uint(want.Height)}
	}
	for _, r := range want.Rlimits {
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(have specs.POSIXRlimit) bool { return have.Type == r.Type })
		p.Rlimits = append(p.Rlimits, r)
	}
	return nil
}

func hasKey(env []string, key string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
}

// MergeEnv puts the overrides over base: a key keeps its first place and gets
// its last value.
func MergeEnv(base, overrides []string) []string {
	var out []string
	at := make(map[string]int)
	for _, e := range slices.Concat(base, overrides) {
		key, _, _ := strings.Cut(e, "=")
		if i, ok := at[key]; ok {
			out[i] = e
			continue
		}
		at[key] = len(out)
		out = append(out, e)
	}
	return out
}

func (b *builder) isolation() error {
	iso := &b.o.Isolation
	var opts []oci.SpecOpts
	for kind, shared := range map[specs.LinuxNamespaceType]bool{
		specs.NetworkNamespace: iso.HostNetwork,
		specs.PIDNamespace:     iso.HostPID,
		specs.IPCNamespace:     iso.HostIPC,
		specs.UTSNamespace:     iso.HostUTS,
	} {
		if shared {
			opts = append(opts, oci.WithHostNamespace(kind))
		}
	}
	if unifiedCgroups() {
		opts = append(opts, oci.WithNamespacedCgroup())
	}
	for _, ns := range iso.Join {
		opts = append(opts, oci.WithLinuxNamespace(ns))
	}
	if iso.SetCgroup {
		opts = append(opts, oci.WithCgroup(iso.Cgroup))
	}
	if err := b.hostname(); err != nil {
		return err
	}
	b.spec.Root.Readonly = iso.ReadOnly
	b.spec.Linux.RootfsPropagation = iso.Propagation
	b.spec.Annotations = maps.Clone(b.o.Annotations)
	return b.apply(opts...)
}

// hostname names the container's UTS namespace, where it has one.
func (b *builder) hostname() error {
	iso := &b.o.Isolation
	joined := slices.ContainsFunc(iso.Join, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UTSNamespace })
	if iso.HostUTS || joined {
		return nil
	}
	name := iso.Hostname
	if name == "" && iso.HostNetwork {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w", err)
		}
		name = host
	}
	if name == "" {
		name = b.o.ID
		if len(name) > 63 {
			name = strings.TrimRight(name[:63], ".-_")
		}
	}
	b.spec.Hostname = name
	b.spec.Process.Env = MergeEnv([]string{"HOSTNAME=" + name}, b.spec.Process.Env)
	return nil
}

// unifiedCgroups says whether the host runs on cgroup v2 alone.
func unifiedCgroups() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// initPath is where the container has Process.Init: /dev is a file system of
// the container's own, so that no trace of it stays in the snapshot.
const initPath = "/dev/init"

func (b *builder) mounts() error {
	var opts []oci.SpecOpts
	if b.o.Isolation.HostNetwork {
		for file, opt := range map[string]oci.SpecOpts{
			"/etc/hosts": oci.WithHostHostsFile, "/etc/resolv.conf": oci.WithHostResolvconf,
		} {
			if _, err := os.Stat(file); err == nil {
				opts = append(opts, opt)
			}
		}
	}
	if b.o.ShmSize > 0 {
		// The option counts in KiB and would round a small size to none.
		opts = append(opts, oci.WithDevShmSize(max(1, (b.o.ShmSize+1023)/1024)))
	}
	if err := b.apply(opts...); err != nil {
		return err
	}
	if b.o.Isolation.HostIPC && b.o.ShmSize == 0 {
		b.replaceMount(specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: "/dev/shm",
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"},
		})
	}
	for _, f := range []struct{ source, target, mode string }{
		{b.o.Process.Init, initPath, "ro"}, {b.o.HostsFile, "/etc/hosts", "rw"}, {b.o.ResolvFile, "/etc/resolv.conf", "rw"},
	} {
		if f.source != "" {
			b.replaceMount(specs.Mount{
				Type: "bind", Source: f.source, Destination: f.target, Options: []string{"bind", "rprivate", f.mode},
			})
		}
	}
	for _, m := range b.o.Mounts {
		b.replaceMount(m)
	}
	return nil
}

// replaceMount adds a mount in place of what had its destination, so that a
// parent keeps coming before its children.
func (b *builder) replaceMount(m specs.Mount) {
	at := slices.IndexFunc(b.spec.Mounts, func(have specs.Mount) bool { return path.Clean(have.Destination) == m.Destination })
	if at >= 0 {
		b.spec.Mounts[at] = m
		return
	}
	b.spec.Mounts = append(b.spec.Mounts, m)
}

func (b *builder) devices() error {
	var opts []oci.SpecOpts
	if sec := &b.o.Security; sec.Privileged && !sec.NoHostDevices {
		opts = append(opts, oci.WithAllDevicesAllowed, oci.WithHostDevices)
	}
	for _, d := range b.o.Devices {
		opts = append(opts, oci.WithDevices(d.Host, d.Container, d.Access))
	}
	if err := b.apply(opts...); err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	return nil
}

func (b *builder) resources() error {
	r := &b.o.Resources
	var opts []oci.SpecOpts
	if r.Memory > 0 {
		opts = append(opts, oci.WithMemoryLimit(uint64(r.Memory)))
	}
	if r.MemorySwap != 0 {
		opts = append(opts, oci.WithMemorySwap(r.MemorySwap))
	}
	if r.CPUs > 0 {
		const period = 100_000
		opts = append(opts, oci.WithCPUCFS(int64(r.CPUs*period), period))
	}
	if r.CPUQuota != 0 || r.CPUPeriod != 0 {
		opts = append(opts, oci.WithCPUCFS(r.CPUQuota, r.CPUPeriod))
	}
	if r.CPUShares > 0 {
		opts = append(opts, oci.WithCPUShares(r.CPUShares))
	}
	if r.CpusetCPUs != "" {
		opts = append(opts, oci.WithCPUs(r.CpusetCPUs))
	}
	if r.CpusetMems != "" {
		opts = append(opts, oci.WithCPUsMems(r.CpusetMems))
	}
	if r.Pids != 0 {
		opts = append(opts, oci.WithPidsLimit(r.Pids))
	}
	if r.RDTClass != "" {
		opts = append(opts, oci.WithRdt(r.RDTClass, "", ""))
	}
	if err := b.apply(opts...); err != nil {
		return err
	}
	if r.MemoryReservation > 0 {
		if b.spec.Linux.Resources.Memory == nil {
			b.spec.Linux.Resources.Memory = &specs.LinuxMemory{}
		}
		b.spec.Linux.Resources.Memory.Reservation = &r.MemoryReservation
	}
	return nil
}

// Limits are resources for a container that exists; nil where none are set.
func Limits(ctx context.Context, r *Resources) (*specs.LinuxResources, error) {
	b := &builder{ctx: ctx, o: &Options{Resources: *r}, spec: &specs.Spec{Linux: &specs.Linux{}}}
	if err := b.resources(); err != nil || b.spec.Linux.Resources == nil {
		return nil, err
	}
	return b.spec.Linux.Resources, nil
}
