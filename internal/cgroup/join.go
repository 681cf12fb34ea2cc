package cgroup

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
)

// Join moves a process, and so what it starts from then on, to the cgroup of that
// path in every hierarchy. The cgroup has to be there.
func Join(path string, pid int) error {
	if !filepath.IsLocal(strings.TrimPrefix(path, "/")) {
		return fmt.Errorf("cgroup path %q leaves the hierarchy: %w", path, errdefs.ErrInvalidArgument)
	}
	path = filepath.Join("/", path)
	var err error
	if cgroups.Mode() == cgroups.Unified {
		var cg *cgroup2.Manager
		if cg, err = cgroup2.Load(path); err == nil {
			err = cg.AddProc(uint64(pid))
		}
	} else {
		var cg cgroup1.Cgroup
		if cg, err = cgroup1.Load(cgroup1.StaticPath(path)); err == nil {
			err = cg.Add(cgroup1.Process{Pid: pid})
		}
	}
	if err != nil {
		return fmt.Errorf("join cgroup %s: %w", path, err)
	}
	return nil
}
