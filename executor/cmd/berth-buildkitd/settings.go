package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/docker/go-units"
	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/util/appdefaults"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/network/cniprovider"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/resolver"
	"github.com/urfave/cli/v3"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/executor/worker"
)

// setup is what flags and the configuration file amount to.
type setup struct {
	addresses  []string
	root       string
	gid        int
	containerd string // empty: the engine inside
	engine     engine.Config
	worker     worker.Config
	server     worker.ServerConfig
}

func flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`FILE` of buildkitd's format; registry, dns, history, cdi, insecure-entitlements and worker.containerd count", Value: "/etc/buildkit/buildkitd.toml"},
		&cli.StringSliceFlag{Name: "addr", Usage: "`ADDRESS` to listen on, unix://PATH", Value: []string{appdefaults.Address}},
		&cli.StringFlag{Name: "group", Usage: "`GROUP` of the socket, name or number"},
		&cli.StringFlag{Name: "root", Usage: "`DIR` for what survives a reboot", Value: "/var/lib/berth-buildkitd"},
		&cli.StringFlag{Name: "state", Usage: "`DIR` for what does not", Value: "/run/berth-buildkitd"},
		&cli.StringFlag{Name: "containerd", Usage: "run steps on the daemon whose socket is `PATH`; default: the engine inside"},
		&cli.StringFlag{Name: "shim", Usage: "`PATH` of Berth's shim, for the engine inside; default: this program itself"},
		&cli.StringFlag{Name: "namespace", Usage: "containerd `NAMESPACE` of the steps", Value: executor.DefaultNamespace},
		&cli.StringFlag{Name: "snapshotter", Usage: "containerd `SNAPSHOTTER`", Value: "overlayfs"},
		&cli.StringFlag{Name: "net", Usage: "network `MODE` of steps: auto, cni, bridge, host"},
		&cli.StringSliceFlag{Name: "allow-insecure-entitlement", Usage: "`NAME`: network.host, security.insecure, device"},
		&cli.StringFlag{Name: "step-memory", Usage: "memory `LIMIT` of a step, e.g. 2g"},
		&cli.FloatFlag{Name: "step-cpus", Usage: "`CPUS` of a step, e.g. 1.5"},
		&cli.Int64Flag{Name: "step-pids", Usage: "`NUMBER` of processes and threads of a step"},
		&cli.DurationFlag{Name: "step-time", Usage: "how long a step may run, e.g. 1h"},
	}
}

func settings(c *cli.Command) (*setup, error) {
	if c.IsSet("config") { // BuildKit takes a file that is not there for an empty one
		if _, err := os.Stat(c.String("config")); err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
	}
	cfg, err := config.LoadFile(c.String("config"))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if t := cfg.GRPC.TLS; t.Cert != "" || t.Key != "" || t.CA != "" {
		return nil, errors.New("configuration: grpc.tls: this program listens on unix sockets only")
	}
	if cfg.Workers.OCI.Enabled != nil && *cfg.Workers.OCI.Enabled {
		return nil, errors.New("configuration: worker.oci: this program has no such worker")
	}
	s := &setup{addresses: c.StringSlice("addr"), root: c.String("root"), containerd: c.String("containerd")}
	if !c.IsSet("addr") && len(cfg.GRPC.Address) > 0 {
		s.addresses = cfg.GRPC.Address
	}
	if s.gid, err = groupID(c.String("group")); err != nil {
		return nil, err
	}
	s.engine = engine.Config{
		Root: filepath.Join(c.String("root"), "engine"), State: filepath.Join(c.String("state"), "engine"),
		ShimBinary: c.String("shim"), Snapshotter: c.String("snapshotter"),
	}
	s.server = worker.ServerConfig{
		Entitlements: append(cfg.Entitlements, c.StringSlice("allow-insecure-entitlement")...),
		Frontends:    cfg.Frontends.Gateway.AllowedRepositories, History: cfg.History,
	}
	if s.worker, err = workerConfig(c, cfg); err != nil {
		return nil, err
	}
	return s, nil
}

func workerConfig(c *cli.Command, cfg config.Config) (worker.Config, error) {
	w, root := cfg.Workers.Containerd, filepath.Join(c.String("root"), "buildkit")
	steps := executor.Config{
		Root: filepath.Join(c.String("state"), "steps"), Namespace: c.String("namespace"),
		CgroupParent: w.DefaultCgroupParent, AppArmorProfile: w.ApparmorProfile, SELinux: w.SELinux,
		Limits: executor.Limits{CPUs: c.Float("step-cpus"), PIDs: c.Int64("step-pids"), Time: c.Duration("step-time")},
	}
	if v := c.String("step-memory"); v != "" {
		n, err := units.RAMInBytes(v)
		if err != nil {
			return worker.Config{}, fmt.Errorf("--step-memory: %w", err)
		}
		steps.Limits.Memory = n
	}
	if d := cfg.DNS; d != nil {
		steps.DNS = &oci.DNSConfig{Nameservers: d.Nameservers, Options: d.Options, SearchDomains: d.SearchDomains}
	}
	var err error
	if steps.CDI, err = cdiManager(cfg.CDI); err != nil {
		return worker.Config{}, fmt.Errorf("CDI: %w", err)
	}
	mode := c.String("net")
	if mode == "" {
		mode = w.Mode
	}
	return worker.Config{
		Root: root, Snapshotter: c.String("snapshotter"), Executor: steps, Labels: w.Labels, MaxSteps: int64(w.MaxParallelism),
		RegistryHosts: resolver.NewRegistryConfig(cfg.Registries), GC: gcPolicy(w.GCConfig, root),
		Network: netproviders.Opt{Mode: mode, CNI: cniprovider.Opt{
			Root:       root,
			ConfigPath: or(w.CNIConfigPath, appdefaults.DefaultCNIConfigPath), BinaryDir: or(w.CNIBinaryPath, appdefaults.DefaultCNIBinDir),
			PoolSize: w.CNIPoolSize, BridgeName: or(w.BridgeName, appdefaults.BridgeName), BridgeSubnet: or(w.BridgeSubnet, appdefaults.BridgeSubnet),
		}},
	}, nil
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// gcPolicy is the file's policy, or BuildKit's default one.
func gcPolicy(cfg config.GCConfig, root string) []bkclient.PruneInfo {
	if cfg.GC != nil && !*cfg.GC {
		return nil
	}
	stat, err := disk.GetDiskStat(root)
	if err != nil { // root is not there yet
		stat, _ = disk.GetDiskStat("/")
	}
	rules := cfg.GCPolicy
	if len(rules) == 0 {
		rules = config.DefaultGCPolicy(cfg, stat)
	}
	var out []bkclient.PruneInfo
	for _, r := range rules {
		out = append(out, bkclient.PruneInfo{
			Filter: r.Filters, All: r.All, KeepDuration: r.KeepDuration.Duration,
			ReservedSpace: r.ReservedSpace.AsBytes(stat), MaxUsedSpace: r.MaxUsedSpace.AsBytes(stat), MinFreeSpace: r.MinFreeSpace.AsBytes(stat),
		})
	}
	return out
}

func cdiManager(cfg config.CDIConfig) (*cdidevices.Manager, error) {
	if cfg.Disabled != nil && *cfg.Disabled {
		return nil, nil
	}
	dirs := cfg.SpecDirs
	if len(dirs) == 0 {
		dirs = appdefaults.CDISpecDirs
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...))
	if err != nil {
		return nil, err
	}
	return cdidevices.NewManager(cache, cfg.AutoAllowed), nil
}

func groupID(name string) (int, error) {
	if name == "" {
		return os.Getegid(), nil
	}
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}
