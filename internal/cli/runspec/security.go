package runspec

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	profile "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxProfile bounds a seccomp profile's file.
const maxProfile = 4 << 20

// capabilities works out the set. "ALL" in CapDrop empties it before CapAdd
// counts; "ALL" in CapAdd fills it before CapDrop counts.
func (b *builder) capabilities() error {
	sec := &b.o.Security
	if sec.Privileged {
		if err := b.apply(oci.WithPrivileged); err != nil {
			return err
		}
	}
	add, err := capNames(sec.CapAdd)
	if err != nil {
		return err
	}
	drop, err := capNames(sec.CapDrop)
	if err != nil {
		return err
	}
	caps := b.spec.Process.Capabilities
	set := caps.Bounding
	switch {
	case slices.Contains(add, "ALL"):
		if set, err = cap.Current(); err != nil {
			return fmt.Errorf("current capabilities: %w", err)
		}
	case slices.Contains(drop, "ALL"):
		set = nil
	}
	for _, c := range add {
		if c != "ALL" && !slices.Contains(set, c) {
			set = append(slices.Clip(set), c)
		}
	}
	set = slices.DeleteFunc(slices.Clone(set), func(c string) bool {
		return slices.Contains(drop, c) && !(slices.Contains(drop, "ALL") && slices.Contains(add, c))
	})
	caps.Bounding, caps.Permitted, caps.Effective = set, slices.Clone(set), slices.Clone(set)
	return nil
}

// capNames checks names and writes them as the spec does.
func capNames(names []string) ([]string, error) {
	var out []string
	known := cap.Known()
	for _, n := range names {
		name := strings.ToUpper(n)
		switch {
		case name == "ALL" || slices.Contains(known, name):
			out = append(out, name)
		case slices.Contains(known, "CAP_"+name):
			return nil, fmt.Errorf("capability %q: write it with CAP_ (CAP_%s)", n, name)
		default:
			return nil, fmt.Errorf("unknown capability %q (see capabilities(7))", n)
		}
	}
	return out, nil
}

func (b *builder) security() error {
	sec := &b.o.Security
	b.spec.Process.NoNewPrivileges = !sec.AllowNewPrivileges && !sec.Privileged
	if sec.Unmasked {
		b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = nil, nil
	}
	if sec.AppArmorDefault != "" {
		if !apparmor.HostSupports() {
			return fmt.Errorf("AppArmor profile %q: this host runs without AppArmor (leave out --apparmor-default-profile)", sec.AppArmorDefault)
		}
		if err := b.apply(profile.WithDefaultProfile(sec.AppArmorDefault)); err != nil {
			return fmt.Errorf("AppArmor profile %q: %w", sec.AppArmorDefault, err)
		}
	}
	if sec.AppArmor != "" {
		b.spec.Process.ApparmorProfile = sec.AppArmor
	}
	if sec.SelinuxLabel != "" {
		b.spec.Process.SelinuxLabel = sec.SelinuxLabel
	}
	switch {
	case sec.Seccomp == "unconfined" || sec.Seccomp == "" && sec.Privileged:
		b.spec.Linux.Seccomp = nil
	case sec.Seccomp == "":
		b.spec.Linux.Seccomp = defaultSeccomp(b.spec)
	default:
		filter, err := readSeccomp(sec.Seccomp)
		if err != nil {
			return fmt.Errorf("seccomp profile %q: %w", sec.Seccomp, err)
		}
		b.spec.Linux.Seccomp = filter
	}
	return nil
}

// defaultSeccomp is containerd's default profile without the x32 ABI of amd64, which
// kernels leave off (Debian's needs syscall.x32=y): without it the runtime compiles
// the filter in two thirds of the time, 6 ms less a container with libseccomp 2.5.
// A call of that ABI kills the process, as one of any architecture that is not named.
func defaultSeccomp(spec *specs.Spec) *specs.LinuxSeccomp {
	filter := seccomp.DefaultProfile(spec)
	filter.Architectures = slices.DeleteFunc(filter.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	return filter
}

// readSeccomp reads a profile in the form of the runtime specification.
// Docker's own form has members that the specification lacks ("includes",
// "archMap", …): to drop them would widen the filter, so they are refused.
func readSeccomp(name string) (*specs.LinuxSeccomp, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.Size() > maxProfile {
		return nil, fmt.Errorf("larger than %d bytes", maxProfile)
	}
	var profile specs.LinuxSeccomp
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(&profile); err != nil {
		return nil, fmt.Errorf("not a profile in the form of the OCI runtime specification: %w", err)
	}
	if profile.DefaultAction == "" {
		return nil, errors.New("it has no defaultAction")
	}
	return &profile, nil
}
