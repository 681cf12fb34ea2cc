package runspec

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ParseIDMaps reads "container:host:size" entries. Ids are 32 bits with the
// last one reserved, ranges may not overlap on either side, and the
// container's id 0 must be among them: without it nothing can be set up.
func ParseIDMaps(list []string) ([]specs.LinuxIDMapping, error) {
	var maps []specs.LinuxIDMapping
	for _, s := range list {
		var n [3]uint64
		parts := strings.Split(s, ":")
		ok := len(parts) == 3
		for i := 0; ok && i < 3; i++ {
			var err error
			n[i], err = strconv.ParseUint(parts[i], 10, 32)
			ok = err == nil
		}
		if !ok || n[2] == 0 || n[0]+n[2] > math.MaxUint32 || n[1]+n[2] > math.MaxUint32 {
			return nil, fmt.Errorf("invalid id map %q (use container:host:size, e.g. 0:100000:65536)", s)
		}
		m := specs.LinuxIDMapping{ContainerID: uint32(n[0]), HostID: uint32(n[1]), Size: uint32(n[2])}
		for _, o := range maps {
			if overlap(m.ContainerID, o.ContainerID, m.Size, o.Size) || overlap(m.HostID, o.HostID, m.Size, o.Size) {
				return nil, fmt.Errorf("id map %q overlaps with %d:%d:%d", s, o.ContainerID, o.HostID, o.Size)
			}
		}
		maps = append(maps, m)
	}
	if _, ok := HostID(maps, 0); len(maps) > 0 && !ok {
		return nil, fmt.Errorf("id maps %s: the container's id 0 is not mapped (add 0:HOST:SIZE)", strings.Join(list, ", "))
	}
	return maps, nil
}

func overlap(a, b, sizeA, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
}

// HostID is the host's id for one of the container's; false where it has none.
func HostID(maps []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// userNamespace gives the container a user namespace, and maps the mounts that
// ask for it.
func (b *builder) userNamespace() error {
	iso := &b.o.Isolation
	if len(iso.UIDMaps) == 0 {
		return nil
	}
	if err := b.apply(oci.WithUserNamespace(iso.UIDMaps, iso.GIDMaps)); err != nil {
		return err
	}
	for i := range b.spec.Mounts {
		m := &b.spec.Mounts[i]
		switch {
		case mapped(m.Options):
			m.UIDMappings, m.GIDMappings = iso.UIDMaps, iso.GIDMaps
		case m.Type == "sysfs" && iso.HostNetwork:
			// The kernel mounts a new sysfs for the owner of the network
			// namespace alone.
			m.Type, m.Source, m.Options = "bind", "/sys", []string{"rbind", "ro", "nosuid", "noexec", "nodev"}
		case m.Type == "mqueue" && iso.HostIPC:
			m.Type, m.Source, m.Options = "bind", "/dev/mqueue", []string{"rbind", "nosuid", "noexec", "nodev"}
		}
		// A group that is not mapped cannot own the terminals.
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool {
			gid, ok := strings.CutPrefix(o, "gid=")
			n, err := strconv.ParseUint(gid, 10, 32)
			_, has := HostID(iso.GIDMaps, uint32(n))
			return ok && m.Type == "devpts" && (err != nil || !has)
		})
	}
	return nil
}

// mapped says that a mount's owners are to be shifted into the container's
// user namespace.
func mapped(options []string) bool {
	return slices.Contains(options, "idmap") || slices.Contains(options, "ridmap")
}
