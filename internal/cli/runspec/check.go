package runspec

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Check refuses what contradicts itself or cannot be meant, before anything is
// made. What depends on the image is Build's.
func (o *Options) Check() error {
	for _, check := range []func() error{o.Process.check, o.Isolation.check, o.Security.check, o.Resources.check} {
		if err := check(); err != nil {
			return err
		}
	}
	for _, m := range o.Mounts {
		if mapped(m.Options) && len(o.Isolation.UIDMaps) == 0 {
			return fmt.Errorf("mount on %s: idmap needs --uidmap and --gidmap", m.Destination)
		}
	}
	return nil
}

func (p *Process) check() error {
	if p.Cwd != "" && !path.IsAbs(p.Cwd) {
		return fmt.Errorf("working directory %q must be an absolute path", p.Cwd)
	}
	for _, id := range append(strings.SplitN(p.User, ":", 2), p.Groups...) {
		if err := checkID(id); err != nil {
			return err
		}
	}
	return nil
}

// checkID refuses numbers that are no user or group id; names pass.
func checkID(s string) error {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return nil
	}
	// The last one means "none" to the kernel.
	if n, err := strconv.ParseUint(s, 10, 32); err != nil || n == math.MaxUint32 {
		return fmt.Errorf("user or group id %s: ids go up to %d", s, uint32(math.MaxUint32-1))
	}
	return nil
}

func (iso *Isolation) check() error {
	joins := func(kind specs.LinuxNamespaceType) bool {
		return slices.ContainsFunc(iso.Join, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
	}
	for i, ns := range iso.Join {
		if slices.ContainsFunc(iso.Join[:i], func(o specs.LinuxNamespace) bool { return o.Type == ns.Type }) {
			return fmt.Errorf("two namespaces of type %s to join", ns.Type)
		}
	}
	switch {
	case iso.Hostname != "" && (iso.HostUTS || joins(specs.UTSNamespace)):
		return fmt.Errorf("hostname %q: the container has no UTS namespace of its own (leave out --hostname, --uts or --with-ns)", iso.Hostname)
	case len(iso.Hostname) > 64:
		return fmt.Errorf("hostname %q is longer than 64 characters", iso.Hostname)
	case iso.HostNetwork && joins(specs.NetworkNamespace):
		return errors.New("the host's network and --with-ns network: exclude each other")
	case (len(iso.UIDMaps) == 0) != (len(iso.GIDMaps) == 0):
		return errors.New("--uidmap and --gidmap belong together (give both)")
	case len(iso.UIDMaps) > 0 && joins(specs.UserNamespace):
		return errors.New("--uidmap and --with-ns user: exclude each other")
	}
	switch iso.Propagation {
	case "", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable":
		return nil
	}
	return fmt.Errorf("propagation %q: use private, slave, shared or unbindable, with or without r", iso.Propagation)
}

func (sec *Security) check() error {
	if sec.NoHostDevices && !sec.Privileged {
		return errors.New("--privileged-without-host-devices has a meaning only together with --privileged")
	}
	if sec.AppArmor != "" && sec.AppArmorDefault != "" {
		return errors.New("--apparmor-profile and --apparmor-default-profile exclude each other")
	}
	if sec.Seccomp != "" && sec.Seccomp != "unconfined" {
		if _, err := os.Stat(sec.Seccomp); err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
	}
	for _, names := range [][]string{sec.CapAdd, sec.CapDrop} {
		if _, err := capNames(names); err != nil {
			return err
		}
	}
	return nil
}

func (r *Resources) check() error {
	switch {
	case r.CPUs > 0 && (r.CPUQuota != 0 || r.CPUPeriod != 0):
		return errors.New("--cpus excludes --cpu-quota and --cpu-period")
	case r.MemorySwap != 0 && r.MemorySwap != -1 && r.MemorySwap < r.Memory:
		return errors.New("--memory-swap counts memory and swap together and cannot be below --memory")
	case r.BlockIOConfig != "" && r.BlockIOClass == "":
		return errors.New("--blockio-config-file needs --blockio-class")
	case r.Pids < -1:
		return fmt.Errorf("--pids-limit %d: use a number from 1, or -1 for no limit", r.Pids)
	}
	for _, list := range []string{r.CpusetCPUs, r.CpusetMems} {
		if strings.Trim(list, "0123456789,-") != "" {
			return fmt.Errorf("cpuset %q: use a list like 0-2,4", list)
		}
	}
	return nil
}
