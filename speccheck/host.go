package speccheck

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel is a version of Linux.
type Kernel struct{ Major, Minor int }

// AtLeast compares.
func (k Kernel) AtLeast(major, minor int) bool {
	return k.Major > major || k.Major == major && k.Minor >= minor
}

func (k Kernel) String() string { return fmt.Sprintf("%d.%d", k.Major, k.Minor) }

// Host is what a machine supports. The zero value is a host of which nothing is
// known: what depends on it is not looked at then. A nil list is not known.
type Host struct {
	Kernel Kernel `json:"kernel"`
	// CgroupV2: /sys/fs/cgroup is cgroup v2. Otherwise v1 or hybrid, where
	// runtimes use v1.
	CgroupV2 bool `json:"cgroupV2"`
	// Controllers are the cgroup controllers, with their names in that version.
	Controllers []string `json:"controllers"`
	AppArmor    bool     `json:"apparmor"`
	SELinux     bool     `json:"selinux"`
	Seccomp     bool     `json:"seccomp"`
	// SeccompActions are named as the kernel does ("errno", "user_notif").
	SeccompActions []string `json:"seccompActions"`
	// RDT: the resctrl file system is mounted.
	RDT bool `json:"rdt"`
	// HugePageSizes are written as "2MB", "1GB".
	HugePageSizes []string `json:"hugePageSizes"`
	// Namespaces are named as the runtime spec does ("network", "mount").
	Namespaces []string `json:"namespaces"`
	// Capabilities is the bounding set, a bit for each.
	Capabilities uint64 `json:"capabilities"`
}

func (h *Host) known() bool { return h.Kernel != Kernel{} }

// ProbeHost looks at this machine, with the eyes of this process. It takes less
// than a millisecond and runs nothing.
func ProbeHost() (Host, error) {
	var h Host
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Host{}, fmt.Errorf("kernel version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	v, ok := parseVersion(release)
	if !ok {
		return Host{}, fmt.Errorf("kernel version %q cannot be read", release)
	}
	h.Kernel = Kernel{v[0], v[1]}
	if err := h.cgroups(); err != nil {
		return Host{}, err
	}
	if err := h.security(); err != nil {
		return Host{}, err
	}
	if err := h.namespaces(); err != nil {
		return Host{}, err
	}
	return h, h.memory()
}

// cgroups: on v1 a controller counts that is mounted, which are those that a
// process is listed in.
func (h *Host) cgroups() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("/sys/fs/cgroup: %w", err)
	}
	h.Controllers = []string{}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		h.CgroupV2 = true
		data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		h.Controllers = append(h.Controllers, strings.Fields(string(data))...)
		return err
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	for line := range strings.SplitSeq(string(data), "\n") {
		if parts := strings.SplitN(line, ":", 3); len(parts) == 3 && parts[0] != "0" {
			h.Controllers = append(h.Controllers, strings.Split(parts[1], ",")...)
		}
	}
	return err
}

func (h *Host) security() error {
	if data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil {
		h.AppArmor = strings.HasPrefix(string(data), "Y")
	}
	_, err := os.Stat("/sys/fs/selinux/enforce")
	h.SELinux = err == nil
	data, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	switch {
	case err == nil:
		h.Seccomp, h.SeccompActions = true, strings.Fields(string(data))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := bytes.Cut(lines.Bytes(), []byte(":\t"))
		switch string(key) {
		case "CapBnd":
			if h.Capabilities, err = strconv.ParseUint(string(value), 16, 64); err != nil {
				return fmt.Errorf("bounding set: %w", err)
			}
		case "Seccomp":
			h.Seccomp = true
		}
	}
	return nil
}

var namespaceNames = map[string]string{
	"pid": "pid", "net": "network", "mnt": "mount", "ipc": "ipc", "uts": "uts", "user": "user", "cgroup": "cgroup", "time": "time",
}

func (h *Host) namespaces() error {
	entries, err := os.ReadDir("/proc/self/ns")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := namespaceNames[e.Name()]; name != "" {
			h.Namespaces = append(h.Namespaces, name)
		}
	}
	return nil
}

// memory: huge pages, and the file system of Intel RDT.
func (h *Host) memory() error {
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		text := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB")
		if kb, err := strconv.ParseUint(text, 10, 64); err == nil {
			h.HugePageSizes = append(h.HugePageSizes, pageSize(kb))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	h.RDT = slices.ContainsFunc(strings.Split(string(mounts), "\n"), func(line string) bool {
		f := strings.Fields(line)
		return len(f) > 2 && f[2] == "resctrl"
	})
	return nil
}

// pageSize is as the runtime spec writes it.
func pageSize(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return fmt.Sprintf("%dGB", kb>>20)
	case kb >= 1<<10:
		return fmt.Sprintf("%dMB", kb>>10)
	}
	return fmt.Sprintf("%dKB", kb)
}
