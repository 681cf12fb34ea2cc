package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	ctdoci "github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/util/network"
	rootless "github.com/moby/buildkit/util/rootless/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// makeSpec makes the step's spec, and what it refers to: mounted sources,
// hosts and resolv.conf in the step's directory, mount points.
func (e *Executor) makeSpec(ctx context.Context, s *step, net network.Namespace, mounts []executor.Mount, meta executor.Meta, readonly bool) error {
	if len(meta.CDIDevices) > 0 && e.cfg.CDI == nil {
		return fmt.Errorf("the step wants CDI devices, which this executor does not have: %w", errdefs.ErrFailedPrecondition)
	}
	u, err := lookupUser(s.root, meta.User)
	if err != nil {
		return err
	}
	if _, err := s.root.makeDir(meta.Cwd, u.UID, u.GID); err != nil {
		return fmt.Errorf("working directory %s of the step: %w", meta.Cwd, pathCause(err))
	}
	opts := []ctdoci.SpecOpts{oci.WithUIDGID(u.UID, u.GID, u.AdditionalGids)}
	if meta.ReadonlyRootFS || readonly {
		opts = append(opts, ctdoci.WithRootFSReadonly())
	}
	resolv, hostsFile := filepath.Join(s.dir, "resolv.conf"), filepath.Join(s.dir, "hosts")
	spec, release, err := oci.GenerateSpec(ctx, meta, mounts, s.id, resolv, hostsFile, net, e.cfg.CgroupParent,
		oci.ProcessSandbox, nil, e.cfg.AppArmorProfile, e.cfg.SELinux, e.cfg.TraceSocket, e.cfg.CDI, opts...)
	if err != nil {
		return fmt.Errorf("spec of the step: %w", err)
	}
	s.undo.add("mounts", func(context.Context) error { release(); return nil })
	spec.Process.Terminal = meta.Tty
	e.cfg.Limits.apply(spec)
	s.spec = spec
	if err := e.writeFiles(spec, meta, resolv, hostsFile); err != nil {
		return err
	}
	if e.cfg.Rootless {
		if s.dropped, err = rootless.ToRootless(spec); err != nil {
			return fmt.Errorf("make the spec rootless: %w", err)
		}
	}
	dests := []string{"/etc/resolv.conf", "/etc/hosts"}
	for _, m := range mounts {
		dests = append(dests, filepath.Join("/", m.Dest))
	}
	stubs, err := makeStubs(s.root, spec, dests, meta.RemoveMountStubsRecursive)
	if err != nil {
		return err
	}
	s.undo.add("mount points", func(context.Context) error { return stubs.remove() })
	return nil
}

// writeFiles writes hosts and resolv.conf, which the spec already names:
// resolv.conf depends on the network that the spec has.
func (e *Executor) writeFiles(spec *specs.Spec, meta executor.Meta, resolv, hostsFile string) error {
	data, err := resolvConf(spec, e.cfg.DNS)
	if err != nil {
		return fmt.Errorf("resolv.conf of the step: %w", err)
	}
	return errors.Join(os.WriteFile(resolv, data, 0o644), os.WriteFile(hostsFile, hosts(meta), 0o644))
}

// apply lowers the spec's limits to l.
func (l Limits) apply(spec *specs.Spec) {
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	r := spec.Linux.Resources
	if l.Memory > 0 {
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		r.Memory.Limit = lower(r.Memory.Limit, l.Memory)
		r.Memory.Swap = lower(r.Memory.Swap, l.Memory) // memory and swap together
	}
	if l.PIDs > 0 {
		if r.Pids == nil {
			r.Pids = &specs.LinuxPids{}
		}
		r.Pids.Limit = lower(r.Pids.Limit, l.PIDs)
	}
	if l.CPUs > 0 {
		if r.CPU == nil {
			r.CPU = &specs.LinuxCPU{}
		}
		l.applyCPU(r.CPU)
	}
}

func (l Limits) applyCPU(c *specs.LinuxCPU) {
	period := uint64(100_000) // the kernel's default, in µs
	if c.Period != nil && *c.Period > 0 {
		period = *c.Period
	}
	c.Period = &period
	c.Quota = lower(c.Quota, max(1000, int64(l.CPUs*float64(period)))) // below 1 ms the kernel refuses
}

// lower gives the smaller of what is set and the limit.
func lower(set *int64, limit int64) *int64 {
	if set != nil && *set > 0 && *set < limit {
		return set
	}
	return &limit
}
