package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/network"
)

// attachmentFile is the name in the directory of a container's files.
const attachmentFile = "network.json"

// addHooks writes the container's attachment, and lets the OCI runtime call
// this program at its start and after its end. So a network is given back
// whoever deletes the container, and a restart that no command sees has one.
func (s *session) addHooks(p *plan, m *made, spec *specs.Spec) error {
	if p.net.mode != "cni" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("network: this program's own path: %w", err)
	}
	file := filepath.Join(m.record.Files, attachmentFile)
	a := network.Attachment{
		ID: s.namespace + "-" + m.ID, ConfDir: p.net.confDir, PluginDirs: p.net.pluginDirs, Ports: p.net.ports,
		Hosts: p.spec.HostsFile, Hostname: firstOf(spec.Hostname, m.ID), Resolv: p.spec.ResolvFile, OwnDNS: len(p.net.servers) > 0,
	}
	if err := a.Save(file); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if spec.Hooks == nil {
		spec.Hooks = &specs.Hooks{}
	}
	hook := func(action string) specs.Hook {
		// The environment has the path, where plugins find iptables.
		return specs.Hook{Path: self, Args: []string{"berth", "network-hook", action, file}, Env: []string{"PATH=" + hookPath}}
	}
	spec.Hooks.CreateRuntime = append(spec.Hooks.CreateRuntime, hook("add"))
	spec.Hooks.Poststop = append(spec.Hooks.Poststop, hook("remove"))
	return nil
}

const hookPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// networkHookCommand is called by OCI runtimes, with the container's state on
// standard input.
func (a *App) networkHookCommand() *cli.Command {
	return &cli.Command{
		Name: "network-hook", Hidden: true, HideHelp: true, ArgsUsage: "add|remove FILE",
		Description: "Example: in the hooks of a specification.",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 2 {
				return usageError("network-hook add|remove FILE")
			}
			file := cmd.Args().Get(1)
			switch cmd.Args().First() {
			case "add":
				var state specs.State
				if err := json.NewDecoder(io.LimitReader(a.Stdin, 1<<20)).Decode(&state); err != nil {
					return fmt.Errorf("state of the container: %w", err)
				}
				if state.Pid <= 0 {
					return errors.New("state of the container: it has no process")
				}
				return network.Add(ctx, file, netnsOf(uint32(state.Pid)))
			case "remove":
				return network.Remove(ctx, file)
			}
			return usageError("network-hook add|remove FILE")
		},
	}
}

// releaseFiles gives back the network of a container that is deleted, should
// its hook not have done so, and removes its files.
func (s *session) releaseFiles(ctx context.Context, c *containers.Container, force bool) error {
	r, err := readRecord(c)
	if err != nil || r.Files == "" {
		return nil // damaged notes name no files
	}
	if err := network.Remove(ctx, filepath.Join(r.Files, attachmentFile)); err != nil {
		if !force {
			return fmt.Errorf("container %q: %w (berth rm -f removes it all the same)", c.ID, err)
		}
		s.warnf("container %q: its addresses and ports stay taken: %v", c.ID, err)
	}
	if err := os.RemoveAll(r.Files); err != nil {
		return fmt.Errorf("container %q: its files: %w", c.ID, err)
	}
	_ = os.Remove(filepath.Dir(r.Files)) // when it was the last
	return nil
}

// networkDetail is a container's network in `berth inspect`.
type networkDetail struct {
	Mode      string         `json:"mode"`
	Addresses []string       `json:"addresses"`
	Ports     []network.Port `json:"ports"`
}

func networkOfRecord(r *record) *networkDetail {
	if r.Network == "" {
		return nil
	}
	d := &networkDetail{Mode: r.Network, Addresses: []string{}, Ports: []network.Port{}}
	if r.Files == "" {
		return d
	}
	a, err := network.Load(filepath.Join(r.Files, attachmentFile))
	if err != nil {
		return d // another mode has none
	}
	for _, ip := range a.Addresses {
		d.Addresses = append(d.Addresses, ip.String())
	}
	d.Ports = append(d.Ports, a.Ports...)
	return d
}
