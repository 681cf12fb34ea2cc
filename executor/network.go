package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/resolvconf"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// onCreateRuntime is what the namespaces of some providers also are: they
// configure the network when there is a process in it and before the step's
// program runs. Pid is that process in the daemon's pid namespace.
type onCreateRuntime interface {
	OnCreateRuntime(pid uint32) error
}

// openNetwork makes the network of a step. The caller closes it.
func (e *Executor) openNetwork(ctx context.Context, meta executor.Meta) (network.Namespace, error) {
	if p := meta.Proxy; p != nil {
		if e.cfg.Proxy == nil {
			return nil, fmt.Errorf("the step wants a proxy, which this executor does not have: %w", errdefs.ErrFailedPrecondition)
		}
		return e.cfg.Proxy.NewProxy(ctx, &network.ProxyConfig{Policy: p.Policy, Capture: p.Capture, EgressMode: meta.NetMode})
	}
	provider, ok := e.cfg.Networks[meta.NetMode]
	if !ok {
		return nil, fmt.Errorf("unknown network mode %s: %w", meta.NetMode, errdefs.ErrInvalidArgument)
	}
	return provider.New(ctx, meta.Hostname, network.NamespaceOptions{})
}

const (
	hostResolvConf = "/etc/resolv.conf"
	// resolvedConf has the servers behind systemd-resolved, which itself listens
	// on the host's loopback only.
	resolvedConf = "/run/systemd/resolve/resolv.conf"
	namedNetns   = "/run/netns"
)

// resolvConf writes what a step in the network of the spec can use: what
// counts is the namespace that it really gets, not the mode it asked for.
func resolvConf(spec *specs.Spec, dns *oci.DNSConfig) ([]byte, error) {
	path, own := stepNetns(spec)
	source := hostResolvConf
	if own && path != "" {
		source = netnsResolvConf(path)
	}
	rc, err := resolvconf.Load(source)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	if own && source == hostResolvConf && slices.Equal(rc.NameServers(), []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53})}) {
		if behind, err := resolvconf.Load(resolvedConf); err == nil {
			rc = behind
		}
	}
	if err := overrideDNS(&rc, dns); err != nil {
		return nil, err
	}
	if own || len(rc.NameServers()) == 0 {
		rc.TransformForLegacyNw(true) // drops servers on loopback; the public ones if none is left
	}
	return rc.Generate(false)
}

func overrideDNS(rc *resolvconf.ResolvConf, dns *oci.DNSConfig) error {
	if dns == nil {
		return nil
	}
	var servers []netip.Addr
	for _, s := range dns.Nameservers {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("nameserver %q: %w: %w", s, err, errdefs.ErrInvalidArgument)
		}
		servers = append(servers, addr)
	}
	if len(servers) > 0 {
		rc.OverrideNameServers(servers)
	}
	if len(dns.SearchDomains) > 0 {
		rc.OverrideSearch(dns.SearchDomains)
	}
	if len(dns.Options) > 0 {
		rc.OverrideOptions(dns.Options)
	}
	return nil
}

// stepNetns says whether the spec has a network namespace that is not this
// process's, and the path if it is one that exists. /proc/self would be the
// first thread, which a network provider may have left in another namespace.
func stepNetns(spec *specs.Spec) (path string, own bool) {
	i := slices.IndexFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	if i < 0 {
		return "", false
	}
	path = spec.Linux.Namespaces[i].Path
	var theirs, ours unix.Stat_t
	if path == "" || unix.Stat(path, &theirs) != nil || unix.Stat("/proc/thread-self/ns/net", &ours) != nil {
		return path, true
	}
	return path, theirs.Dev != ours.Dev || theirs.Ino != ours.Ino
}

// netnsResolvConf follows the convention of ip-netns(8): a namespace with a
// name may have a resolv.conf of its own.
func netnsResolvConf(path string) string {
	if filepath.Dir(path) == namedNetns || filepath.Dir(path) == "/var"+namedNetns {
		named := filepath.Join("/etc/netns", filepath.Base(path), "resolv.conf")
		if _, err := os.Stat(named); err == nil {
			return named
		}
	}
	return hostResolvConf
}

// hosts writes the step's /etc/hosts.
func hosts(meta executor.Meta) []byte {
	name := meta.Hostname
	if name == "" {
		name = "buildkitsandbox" // the hostname that the spec has then
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", name)
	for _, h := range meta.ExtraHosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Host)
	}
	return b.Bytes()
}
