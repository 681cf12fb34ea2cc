package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/network"
	"github.com/berthd/berth/internal/cli/runspec"
)

// netPlan is what the command line says about a container's network.
type netPlan struct {
	// mode is "none", "host", "cni" or "container"; of is the container then.
	mode, of string
	ports    []network.Port
	// hosts are lines; servers, search and options a resolv.conf's.
	hosts, servers, search, options []string
	// confDir and pluginDirs are the network's, in mode cni.
	confDir    string
	pluginDirs []string
}

// readNetwork reads the flags. In mode cni the host is asked whether it has
// what is needed, before anything is made.
func (p *plan) readNetwork(cmd *cli.Command) error {
	n := &p.net
	var modes []string
	if s := cmd.String("network"); s != "" {
		modes = append(modes, s)
	}
	if cmd.Bool("net-host") {
		modes = append(modes, "host")
	}
	if cmd.Bool("cni") {
		modes = append(modes, "cni")
	}
	if err := n.readPorts(cmd.StringSlice("publish")); err != nil {
		return err
	}
	switch {
	case len(modes) > 1:
		return usageError("--network, --net-host and --cni exclude each other")
	case len(modes) == 1:
		n.mode = modes[0]
	case len(n.ports) > 0:
		n.mode = "cni"
	default:
		n.mode = "none"
	}
	if of, ok := strings.CutPrefix(n.mode, "container:"); ok {
		n.mode, n.of = "container", of
	}
	switch n.mode {
	case "none", "cni":
	case "host":
		p.spec.Isolation.HostNetwork = true
	case "container":
		if err := runspec.CheckID(n.of); err != nil {
			return err
		}
	default:
		return usageError("--network %q: use none, host, cni or container:NAME", n.mode)
	}
	if len(n.ports) > 0 && n.mode != "cni" {
		return usageError("--publish needs --network cni")
	}
	for _, ns := range p.spec.Isolation.Join {
		if ns.Type == specs.NetworkNamespace && n.mode != "none" {
			return usageError("--with-ns network: excludes --network %s", n.mode)
		}
	}
	if err := n.readNames(cmd); err != nil {
		return err
	}
	if n.mode != "cni" {
		return nil
	}
	var err error
	n.confDir, n.pluginDirs, err = network.Find()
	return err
}

func (n *netPlan) readPorts(list []string) error {
	for _, s := range list {
		ports, err := runspec.ParsePort(s)
		if err != nil {
			return err
		}
		for _, p := range ports {
			port := network.Port{Host: int32(p.Host), Container: int32(p.Container), Protocol: p.Protocol}
			if p.HostIP.IsValid() {
				port.HostIP = p.HostIP.String()
			}
			n.ports = append(n.ports, port)
		}
	}
	return nil
}

func (n *netPlan) readNames(cmd *cli.Command) error {
	for _, kind := range []struct {
		flag  string
		parse func(string) (string, error)
		to    *[]string
	}{
		{"add-host", runspec.ParseHost, &n.hosts},
		{"dns", runspec.ParseDNS, &n.servers},
		{"dns-search", runspec.ParseDomain, &n.search},
		{"dns-option", runspec.ParseResolvOption, &n.options},
	} {
		for _, s := range cmd.StringSlice(kind.flag) {
			v, err := kind.parse(s)
			if err != nil {
				return err
			}
			*kind.to = append(*kind.to, v)
		}
	}
	return nil
}

// dnsGiven says that the user, not the network, names the name servers.
func (n *netPlan) dnsGiven() bool { return len(n.servers)+len(n.search)+len(n.options) > 0 }

// joinNetwork completes the plan with the namespace of the container that it
// shares the network with, and with that one's files.
func (s *session) joinNetwork(ctx context.Context, p *plan) error {
	pid, files, err := s.networkOf(ctx, p.net.of)
	if err != nil {
		return err
	}
	p.spec.Isolation.Join = append(p.spec.Isolation.Join, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netnsOf(pid)})
	for _, f := range []struct {
		name string
		to   *string
	}{{"hosts", &p.spec.HostsFile}, {"resolv.conf", &p.spec.ResolvFile}} {
		if name := filepath.Join(files, f.name); files != "" {
			if _, err := os.Stat(name); err == nil {
				*f.to = name
			}
		}
	}
	return nil
}

// networkOf finds a running container's first process, and the directory of
// its files, empty for none.
func (s *session) networkOf(ctx context.Context, id string) (pid uint32, files string, err error) {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return 0, "", containerError(id, err)
	}
	r, err := readRecord(&c)
	if err != nil {
		return 0, "", err
	}
	t, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err = native(err); err != nil {
		return 0, "", notRunning(id, err)
	}
	if t.Process.Pid == 0 {
		return 0, "", notRunning(id, os.ErrProcessDone)
	}
	return t.Process.Pid, r.Files, nil
}

func netnsOf(pid uint32) string { return "/proc/" + strconv.FormatUint(uint64(pid), 10) + "/ns/net" }

// makeFiles makes /etc/hosts and /etc/resolv.conf of a container whose network
// needs them, in a directory of its own, which is returned; empty for none.
func (s *session) makeFiles(ctx context.Context, p *plan) (string, error) {
	n := &p.net
	if n.mode == "container" {
		return "", s.joinNetwork(ctx, p)
	}
	joined := ""
	for _, ns := range p.spec.Isolation.Join {
		if ns.Type == specs.NetworkNamespace {
			joined = ns.Path
		}
	}
	if n.mode != "cni" && joined == "" && len(n.hosts) == 0 && !n.dnsGiven() {
		return "", nil
	}
	_, root, err := s.daemonExports(ctx)
	if err != nil {
		return "", err
	}
	parent := filepath.Join(root, "files")
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return "", fmt.Errorf("directory of the container's files: %w", err)
	}
	// Not named after the container: one that went without berth left its own.
	dir, err := os.MkdirTemp(parent, p.spec.ID+".")
	if err == nil {
		// The files are what a user in the container sees; the rest is root's.
		err = os.Chmod(dir, 0o711)
	}
	if err == nil {
		err = n.write(dir, joined)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("the container's files: %w", err)
	}
	p.spec.HostsFile, p.spec.ResolvFile = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	return dir, nil
}

// write makes both files.
func (n *netPlan) write(dir, joined string) error {
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if own := ofNamespace(joined, "hosts"); n.mode == "host" || own != "" {
		data, err := os.ReadFile(firstOf(own, "/etc/hosts"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		hosts = string(data)
		if hosts != "" && !strings.HasSuffix(hosts, "\n") {
			hosts += "\n"
		}
	}
	for _, line := range n.hosts {
		hosts += line + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts), 0o644); err != nil {
		return err
	}
	resolv, err := n.resolver(joined)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "resolv.conf"), resolv, 0o644)
}

// resolver is the text of resolv.conf: the user's, else what belongs to the
// network namespace that is used.
func (n *netPlan) resolver(joined string) ([]byte, error) {
	if n.dnsGiven() && len(n.servers) > 0 {
		return network.Resolv(n.servers, n.search, n.options), nil
	}
	if n.mode == "none" && joined == "" {
		return network.Resolv(nil, n.search, n.options), nil
	}
	own := ofNamespace(joined, "resolv.conf")
	data, err := os.ReadFile(firstOf(own, "/etc/resolv.conf"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// A resolver on the host's loopback is out of reach elsewhere.
	if n.mode != "host" && own == "" && loopbackOnly(data) {
		if behind, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			data = behind
		}
	}
	if len(n.search)+len(n.options) > 0 {
		if len(data) > 0 && !bytes.HasSuffix(data, []byte("\n")) {
			data = append(data, '\n')
		}
		data = append(data, network.Resolv(nil, n.search, n.options)...) // the last line of a kind counts
	}
	return data, nil
}

// ofNamespace is the file that belongs to a named network namespace, as
// ip-netns(8) has it; empty for none.
func ofNamespace(path, file string) string {
	for _, dir := range []string{"/run/netns/", "/var/run/netns/"} {
		if name, ok := strings.CutPrefix(path, dir); ok && name != "" && !strings.Contains(name, "/") {
			own := filepath.Join("/etc/netns", name, file)
			if _, err := os.Stat(own); err == nil {
				return own
			}
		}
	}
	return ""
}

func loopbackOnly(resolv []byte) bool {
	for _, line := range strings.Split(string(resolv), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil && !ip.IsLoopback() {
			return false
		}
	}
	return true
}

// rejoinNetwork writes the namespace of the container that a stopped one
// shares the network with into its specification: it may have been started
// again meanwhile.
func (s *session) rejoinNetwork(ctx context.Context, m *made) error {
	if m.record.NetworkOf == "" {
		return nil
	}
	pid, _, err := s.networkOf(ctx, m.record.NetworkOf)
	if err != nil {
		return err
	}
	spec, err := containerSpec(&m.Container)
	if err != nil || spec.Linux == nil {
		return err
	}
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.NetworkNamespace {
			ns.Path = netnsOf(pid)
		}
	}
	return s.storeSpec(ctx, m, spec)
}
