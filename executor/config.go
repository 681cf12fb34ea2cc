package executor

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
)

// Defaults of a Config.
const (
	DefaultRoot      = "/run/berth/executor"
	DefaultNamespace = "buildkit"
	DefaultRuntime   = "io.containerd.runc.v2"
	// DefaultKillTimeout is how long a killed step may take to end.
	DefaultKillTimeout = 10 * time.Second
)

// Config says how steps run. The zero value runs them in the host's network
// with no limits.
type Config struct {
	// Root holds hosts, resolv.conf and FIFOs of the steps that run. It is made
	// 0711; one executor uses it at a time. Default /run/berth/executor.
	Root string
	// Namespace is containerd's; that of a context does not count. Default
	// buildkit.
	Namespace string
	// Runtime runs the steps. Default io.containerd.runc.v2, which under berthd
	// is Berth's shim.
	Runtime Runtime

	// Networks has a provider for each mode. The caller closes them. Default:
	// the host's network for UNSET and HOST, an empty one for NONE.
	Networks map[pb.NetMode]network.Provider
	// Proxy is for steps that ask for one; nil refuses them. The caller closes it.
	Proxy network.ProxyProvider
	// DNS replaces what the step's resolv.conf would say; nil leaves it.
	DNS *oci.DNSConfig

	// CgroupParent is where the cgroups of steps go that name no parent
	// themselves. Default: below the namespace.
	CgroupParent string
	// Limits hold for every step.
	Limits Limits
	// AppArmorProfile confines steps in sandbox mode; SELinux labels them.
	AppArmorProfile string
	SELinux         bool
	// Rootless takes out of a step what needs a root that is real.
	Rootless bool
	// TraceSocket is the OpenTelemetry socket that steps get, if it exists.
	TraceSocket string
	// CDI resolves the devices that steps ask for; nil refuses them.
	CDI *cdidevices.Manager

	// KillTimeout is how long Run waits for the end of a step that it killed.
	// Default 10 s.
	KillTimeout time.Duration
}

// Runtime names what runs a container.
type Runtime struct {
	// Name as containerd knows it, Path of its binary, Options of the type that
	// the runtime takes; each may be left out.
	Name, Path string
	Options    any
}

// Limits bound one step; 0 is no limit. What a step itself asks for can only
// lower them.
type Limits struct {
	// Memory in bytes, without swap on top.
	Memory int64
	// CPUs is how many CPUs' time a step gets, e.g. 1.5.
	CPUs float64
	// PIDs is how many processes and threads it may have.
	PIDs int64
	// Time is how long it may run.
	Time time.Duration
}

// complete fills in the defaults.
func (c Config) complete() (Config, error) {
	if c.Root == "" {
		c.Root = DefaultRoot
	}
	if !filepath.IsAbs(c.Root) {
		return c, fmt.Errorf("root directory %q is not an absolute path: %w", c.Root, errdefs.ErrInvalidArgument)
	}
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if c.Runtime.Name == "" {
		c.Runtime.Name = DefaultRuntime
	}
	if c.KillTimeout == 0 {
		c.KillTimeout = DefaultKillTimeout
	}
	if c.Networks == nil {
		host := network.NewHostProvider()
		c.Networks = map[pb.NetMode]network.Provider{
			pb.NetMode_UNSET: host, pb.NetMode_HOST: host, pb.NetMode_NONE: network.NewNoneProvider(),
		}
	}
	l := c.Limits
	if l.Memory < 0 || l.CPUs < 0 || l.PIDs < 0 || l.Time < 0 || c.KillTimeout < 0 {
		return c, fmt.Errorf("limits of a step are negative: %+v: %w", l, errdefs.ErrInvalidArgument)
	}
	if c.Rootless && (l.Memory > 0 || l.CPUs > 0 || l.PIDs > 0) {
		return c, fmt.Errorf("rootless steps have no cgroup to limit memory, CPUs or PIDs: %w", errdefs.ErrInvalidArgument)
	}
	return c, nil
}
