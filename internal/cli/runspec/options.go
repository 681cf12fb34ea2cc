// Package runspec turns the options of `berth run` and an image's
// configuration into an OCI runtime specification. It talks to no daemon: the
// only file system that it reads is the container's root, for users and groups.
package runspec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Options is what a user asked for a container. The zero value runs the
// image's own command with the default isolation: namespaces of its own, no
// network but loopback, the default capabilities and seccomp profile, and no
// way to gain privileges.
type Options struct {
	// ID names the container; it is part of the cgroup path.
	ID string
	// Rootfs is the directory to run in, empty for an image's snapshot.
	Rootfs string

	Process   Process
	Isolation Isolation
	Security  Security
	Resources Resources

	// Mounts are added over the default ones; one with the destination of a
	// default mount replaces it.
	Mounts []specs.Mount
	// Devices are shown in the container and allowed in its cgroup.
	Devices []Device
	// CDI are devices by the names of the host's CDI files; GPUs are numbers
	// of devices there, or "all".
	CDI, GPUs []string
	// HostsFile and ResolvFile are files of the host that the container has
	// as /etc/hosts and /etc/resolv.conf, empty for the default.
	HostsFile, ResolvFile string
	// ShmSize is the size of /dev/shm in bytes, 0 for the default 64 MiB.
	ShmSize int64
	// Annotations are given to the OCI runtime.
	Annotations map[string]string
}

// Process is the container's first process.
type Process struct {
	// Args replace the image's command.
	Args []string
	// Entrypoint replaces the image's entrypoint where SetEntrypoint is true;
	// empty, it takes the entrypoint away. The image's command goes with it.
	Entrypoint    string
	SetEntrypoint bool
	// Env is "KEY=value", later ones win, over the image's.
	Env []string
	// Cwd is the absolute working directory, empty for the image's.
	Cwd string
	// User is "name|uid[:group|gid]", empty for the image's.
	User string
	// Groups are added to the user's, by name or number.
	Groups []string
	// Init is a program of the host that runs in the container as its first
	// process and starts the command, empty for none.
	Init string
	// Terminal gives the process a terminal.
	Terminal bool
	// Width and Height are the terminal's first size, 0 for the runtime's.
	Width, Height uint16
	// Rlimits replace the default ones of their type.
	Rlimits []specs.POSIXRlimit
	// OOMScoreAdj is nil for the default of the daemon.
	OOMScoreAdj *int
}

// Isolation says what the container shares with the host.
type Isolation struct {
	// Hostname is empty for the first characters of the container's id.
	Hostname string
	// HostNetwork, HostPID, HostIPC and HostUTS leave out the namespace.
	HostNetwork, HostPID, HostIPC, HostUTS bool
	// Join are existing namespaces to enter.
	Join []specs.LinuxNamespace
	// UIDMaps and GIDMaps make a user namespace; both or none are set.
	UIDMaps, GIDMaps []specs.LinuxIDMapping
	// ReadOnly makes the root file system read-only.
	ReadOnly bool
	// Propagation is the propagation of the root mount ("shared", "slave", …).
	Propagation string
	// Cgroup is the cgroup's path; it counts where SetCgroup is true. Empty,
	// the container stays in the runtime's own cgroup.
	Cgroup    string
	SetCgroup bool
}

// Security says what the container's processes may do.
type Security struct {
	// Privileged gives every capability, every device and lifts the masks.
	Privileged bool
	// NoHostDevices keeps the host's devices from a privileged container.
	NoHostDevices bool
	// CapAdd and CapDrop are capability names with "CAP_", or "ALL".
	CapAdd, CapDrop []string
	// AllowNewPrivileges lets set-uid programs gain privileges.
	AllowNewPrivileges bool
	// Seccomp is "" for the default profile, "unconfined", or a file.
	Seccomp string
	// AppArmor is a loaded profile's name, or "unconfined".
	AppArmor string
	// AppArmorDefault is the name under which the default profile is loaded,
	// empty for no profile.
	AppArmorDefault string
	// SelinuxLabel is the process label.
	SelinuxLabel string
	// Unmasked shows the paths that are masked by default.
	Unmasked bool
}

// Resources are the limits of the container. Zero values set no limit.
type Resources struct {
	// Memory, MemoryReservation and MemorySwap are bytes; MemorySwap counts
	// memory and swap together, -1 for no limit of swap.
	Memory, MemoryReservation, MemorySwap int64
	// CPUs is a share of all processors: 1.5 is one and a half.
	CPUs float64
	// CPUShares is the relative weight, CPUQuota and CPUPeriod are microseconds.
	CPUShares uint64
	CPUQuota  int64
	CPUPeriod uint64
	// CpusetCPUs and CpusetMems are lists like "0-2,4".
	CpusetCPUs, CpusetMems string
	// Pids is the greatest number of processes, -1 for none.
	Pids int64
	// RDTClass is the class of service for cache and memory bandwidth.
	RDTClass string
	// BlockIOClass is a class of the file BlockIOConfig.
	BlockIOClass, BlockIOConfig string
}

// Device is a device node of the host.
type Device struct {
	Host, Container string
	// Access is any of "r", "w" and "m".
	Access string
}
