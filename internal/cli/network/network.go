// Package network attaches containers to a network of CNI plugins, and takes
// them off. Its state is one file a container, which the OCI hooks name: who
// ends a container, and through which client, does not matter.
package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cni "github.com/containerd/go-cni"
	"golang.org/x/sys/unix"
)

// Attachment is a container's place in the network, as it stands in its file.
type Attachment struct {
	// ID tells the container from all others of this machine.
	ID string `json:"id"`
	// ConfDir has the network's configuration, PluginDirs its programs.
	ConfDir    string   `json:"confDir"`
	PluginDirs []string `json:"pluginDirs"`
	Ports      []Port   `json:"ports,omitempty"`
	// Hosts and Resolv are the container's files, completed with what the
	// plugins say: the address after Hostname, and name servers where
	// OwnDNS is false. Empty for none.
	Hosts    string `json:"hosts,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	Resolv   string `json:"resolv,omitempty"`
	OwnDNS   bool   `json:"ownDNS,omitempty"`

	// Attached is true from before the plugins are called until they have
	// taken the container off.
	Attached  bool         `json:"attached"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Port is a port of the host that leads into the container.
type Port struct {
	HostIP    string `json:"hostIP,omitempty"`
	Host      int32  `json:"host"`
	Container int32  `json:"container"`
	Protocol  string `json:"protocol"`
}

// maxFile bounds the files that are read.
const maxFile = 1 << 20

// Load reads an attachment's file.
func Load(file string) (*Attachment, error) {
	data, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("network of a container: %w", err)
	}
	var a Attachment
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("network of a container: %s: %w", file, err)
	}
	return &a, nil
}

func readFile(name string) ([]byte, error) {
	if st, err := os.Stat(name); err != nil {
		return nil, err
	} else if st.Size() > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	return os.ReadFile(name)
}

// Save writes the file so that a reader sees all of it or nothing.
func (a *Attachment) Save(file string) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// plugins opens the network that the configuration directory names first.
func (a *Attachment) plugins() (cni.CNI, error) {
	network, err := cni.New(cni.WithPluginConfDir(a.ConfDir), cni.WithPluginDir(a.PluginDirs), cni.WithMinNetworkCount(1))
	if err == nil {
		err = network.Load(cni.WithDefaultConf)
	}
	if err != nil {
		return nil, fmt.Errorf("network configuration in %s: %w", a.ConfDir, err)
	}
	return network, nil
}

// Add attaches the network namespace at the path netns. It notes that in the
// file first, so that Remove knows of a try that was cut off.
func Add(ctx context.Context, file, netns string) error {
	unlock, err := lock(file)
	if err != nil {
		return err
	}
	defer unlock()
	a, err := Load(file)
	if err != nil {
		return err
	}
	network, err := a.plugins()
	if err != nil {
		return err
	}
	var opts []cni.NamespaceOpts
	if len(a.Ports) > 0 {
		opts = append(opts, cni.WithCapabilityPortMap(a.portMappings()))
	}
	if a.Attached {
		// An earlier start ended without its hook: plugins refuse to add twice.
		if err := network.Remove(ctx, a.ID, "", opts...); err != nil {
			return fmt.Errorf("network: take off what an earlier start left: %w", err)
		}
	}
	a.Attached, a.Addresses = true, nil
	if err := a.Save(file); err != nil {
		return err
	}
	result, err := network.Setup(ctx, a.ID, netns, opts...)
	if err != nil {
		err = fmt.Errorf("network: %w", err)
		// What the plugins did until then is undone; the file says so if not.
		if network.Remove(ctx, a.ID, netns, opts...) == nil {
			a.Attached = false
			err = errors.Join(err, a.Save(file))
		}
		return err
	}
	for _, i := range result.Interfaces {
		for _, c := range i.IPConfigs {
			// Those of the host's side have no sandbox.
			if ip, ok := netip.AddrFromSlice(c.IP); ok && i.Sandbox != "" {
				a.Addresses = append(a.Addresses, ip.Unmap())
			}
		}
	}
	slices.SortFunc(a.Addresses, netip.Addr.Compare)
	var servers, search []string
	for _, d := range result.DNS {
		servers, search = append(servers, d.Nameservers...), append(search, d.Search...)
	}
	return errors.Join(a.complete(servers, search), a.Save(file))
}

func (a *Attachment) portMappings() []cni.PortMapping {
	var list []cni.PortMapping
	for _, p := range a.Ports {
		list = append(list, cni.PortMapping{HostPort: p.Host, ContainerPort: p.Container, Protocol: p.Protocol, HostIP: p.HostIP})
	}
	return list
}

// complete writes into the container's files in place: it may have them
// mounted already.
func (a *Attachment) complete(servers, search []string) error {
	var errs []error
	if a.Hosts != "" && len(a.Addresses) > 0 {
		data, err := readFile(a.Hosts)
		errs = append(errs, err)
		if err == nil {
			// An address of an earlier start does not stay.
			suffix := "\t" + a.Hostname + " # this container"
			lines := slices.DeleteFunc(strings.SplitAfter(string(data), "\n"), func(l string) bool {
				return strings.HasSuffix(strings.TrimSuffix(l, "\n"), suffix)
			})
			text := strings.Join(lines, "")
			for _, ip := range a.Addresses {
				text += ip.String() + suffix + "\n"
			}
			errs = append(errs, os.WriteFile(a.Hosts, []byte(text), 0o644))
		}
	}
	if a.Resolv != "" && !a.OwnDNS && len(servers) > 0 {
		errs = append(errs, os.WriteFile(a.Resolv, Resolv(servers, search, nil), 0o644))
	}
	return errors.Join(errs...)
}

// Resolv is the text of a resolv.conf.
func Resolv(servers, search, options []string) []byte {
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}

// Remove takes the container off; it has an effect once for each Add. The
// namespace need not be there any more: addresses and ports are the host's.
func Remove(ctx context.Context, file string) error {
	unlock, err := lock(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer unlock()
	a, err := Load(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !a.Attached {
		return err
	}
	network, err := a.plugins()
	if err != nil {
		return err
	}
	var opts []cni.NamespaceOpts
	if len(a.Ports) > 0 {
		opts = append(opts, cni.WithCapabilityPortMap(a.portMappings()))
	}
	if err := network.Remove(ctx, a.ID, "", opts...); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	a.Attached, a.Addresses = false, nil
	return a.Save(file)
}

// lock keeps two commands from working on one container's network. The
// directory is locked: the file itself is replaced.
func lock(file string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, err
	}
	return func() { dir.Close() }, nil
}
