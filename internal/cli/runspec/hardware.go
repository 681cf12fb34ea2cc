package runspec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/intel/goresctrl/pkg/blockio"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// IsCDI says that a device is named as in a file of the container device
// interface: "vendor.example/class=name".
func IsCDI(name string) bool { return parser.IsQualifiedName(name) }

// ParseGPU reads the number of a GPU, or "all".
func ParseGPU(s string) (string, error) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return strconv.FormatUint(n, 10), nil
	}
	if s == "all" {
		return s, nil
	}
	return "", fmt.Errorf("invalid GPU %q (use its number, or all)", s)
}

// cdiDevices adds devices from the host's CDI files: their nodes, mounts,
// variables and hooks. The names are the user's own, never an image's.
func (b *builder) cdiDevices() error {
	if len(b.o.CDI) == 0 && len(b.o.GPUs) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("CDI: %w", err)
	}
	names := slices.Clone(b.o.CDI)
	if len(b.o.GPUs) > 0 {
		vendors := cache.ListVendors()
		vendor := slices.IndexFunc(vendors, func(v string) bool { return v == "nvidia.com" || v == "amd.com" })
		if vendor < 0 {
			return fmt.Errorf("GPUs: no CDI file of nvidia.com or amd.com in %s (make one with the vendor's tool, e.g. nvidia-ctk cdi generate)", strings.Join(cdi.DefaultSpecDirs, ", "))
		}
		for _, n := range b.o.GPUs {
			names = append(names, vendors[vendor]+"/gpu="+n)
		}
	}
	// A file that is broken does not count, unless one of these names is in it.
	if missing, err := cache.InjectDevices(b.spec, names...); err != nil {
		return fmt.Errorf("device %s: not in the CDI files of %s: %w", strings.Join(missing, ", "), strings.Join(cdi.DefaultSpecDirs, ", "), err)
	}
	return nil
}

// blockIO gives the container a class of the block I/O configuration file.
func (b *builder) blockIO() error {
	r := &b.o.Resources
	if r.BlockIOClass == "" {
		return nil
	}
	if r.BlockIOConfig != "" {
		if err := blockio.SetConfigFromFile(r.BlockIOConfig, true); err != nil {
			return fmt.Errorf("block I/O configuration %q: %w", r.BlockIOConfig, err)
		}
	}
	class, err := blockio.OciLinuxBlockIO(r.BlockIOClass)
	if err != nil {
		return fmt.Errorf("block I/O class %q: %w", r.BlockIOClass, err)
	}
	return b.apply(oci.WithBlockIO(class))
}
