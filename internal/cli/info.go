package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/version"
)

func (a *App) versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the versions of berth and of the daemon",
		Category:    "Daemon",
		Description: "Example:\n  berth version --json",
		Flags:       []cli.Flag{yes("json", "print one JSON object"), formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			v := versionDetail{Client: clientVersion()}
			err := a.with(ctx, cmd, func(ctx context.Context, s *session) (err error) {
				v.Server, err = s.serverVersion(ctx)
				return err
			})
			if printed, e := printOne(a, cmd, &v); printed || e != nil {
				return errors.Join(err, e)
			}
			a.printf("Client:\n  Version:  %s\n  Revision: %s\n  Go:       %s\n", v.Client.Version, v.Client.Revision, v.Client.Go)
			if v.Server != nil {
				a.printf("Server:\n  Version:  %s\n  Revision: %s\n  UUID:     %s\n", v.Server.Version, v.Server.Revision, v.Server.UUID)
			}
			return err
		},
	}
}

type versionDetail struct {
	Client buildDetail   `json:"client"`
	Server *serverDetail `json:"server"`
}

type buildDetail struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Go       string `json:"go"`
}

type serverDetail struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	UUID     string `json:"uuid"`
	Pid      uint64 `json:"pid,omitempty"`
}

func clientVersion() buildDetail {
	v := version.Get()
	return buildDetail{Version: v.Version, Revision: v.Revision, Go: v.Go}
}

func (s *session) serverVersion(ctx context.Context) (*serverDetail, error) {
	v, err := s.client.VersionService().Version(ctx, &emptypb.Empty{})
	if err != nil {
		return nil, fmt.Errorf("daemon at %s: version: %w", s.address, native(err))
	}
	d := &serverDetail{Version: v.Version, Revision: v.Revision}
	server, err := s.client.IntrospectionService().Server(ctx)
	switch {
	case err == nil:
		d.UUID, d.Pid = server.UUID, server.Pid
	case !errdefs.IsNotImplemented(err):
		return nil, fmt.Errorf("daemon at %s: %w", s.address, err)
	}
	return d, nil
}

func (a *App) infoCommand() *cli.Command {
	return &cli.Command{
		Name:        "info",
		Usage:       "describe the daemon",
		Category:    "Daemon",
		Description: "Example:\n  berth info --json",
		Flags:       []cli.Flag{yes("json", "print one JSON object"), formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				d, err := s.info(ctx)
				if err != nil {
					return err
				}
				if printed, err := printOne(a, cmd, d); printed || err != nil {
					return err
				}
				s.printInfo(d)
				return nil
			})
		},
	}
}

// infoDetail is what `berth info --json` prints. The names of the fields stay
// as they are.
type infoDetail struct {
	Server       serverDetail `json:"server"`
	Address      string       `json:"address"`
	Root         string       `json:"root,omitempty"`
	Namespace    string       `json:"namespace"`
	Namespaces   []string     `json:"namespaces"`
	Snapshotters []string     `json:"snapshotters"`
	Runtimes     []string     `json:"runtimes"`
	Platforms    []string     `json:"platforms"`
	LogSchemes   []string     `json:"logUriSchemes"`
	Containers   int          `json:"containers"`
	Running      int          `json:"running"`
	Images       int          `json:"images"`
	// Failed are the parts of the daemon that did not come up.
	Failed []string `json:"failed"`
}

func (s *session) info(ctx context.Context) (*infoDetail, error) {
	d := &infoDetail{
		Address: s.address, Namespace: s.namespace, Snapshotters: []string{}, Runtimes: []string{},
		Platforms: []string{}, LogSchemes: []string{}, Failed: []string{}, Namespaces: []string{},
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		v, err := s.serverVersion(ctx)
		if err == nil {
			d.Server = *v
		}
		return err
	})
	g.Go(func() error { return s.infoPlugins(ctx, d) })
	g.Go(func() error {
		rows, err := s.listContainers(ctx)
		d.Containers = len(rows)
		for _, r := range rows {
			if r.alive() {
				d.Running++
			}
		}
		return err
	})
	g.Go(func() error {
		list, err := s.client.ImageService().List(ctx)
		if err != nil {
			return fmt.Errorf("list images: %w", err)
		}
		d.Images = len(list)
		return nil
	})
	g.Go(func() error {
		list, err := s.client.NamespaceService().List(ctx)
		if err != nil {
			return fmt.Errorf("list namespaces: %w", err)
		}
		d.Namespaces = append(d.Namespaces, list...)
		return nil
	})
	return d, g.Wait()
}

// infoPlugins reads the daemon's parts. It alone writes the fields it fills.
func (s *session) infoPlugins(ctx context.Context, d *infoDetail) error {
	answer, err := s.client.IntrospectionService().Plugins(ctx)
	if err != nil {
		return fmt.Errorf("list the daemon's parts: %w", err)
	}
	for _, p := range answer.Plugins {
		if p.InitErr != nil && !strings.Contains(p.InitErr.Message, "skip plugin") {
			d.Failed = append(d.Failed, p.Type+"."+p.ID)
			continue
		}
		switch {
		case p.InitErr != nil:
		case p.Type == "io.containerd.snapshotter.v1":
			d.Snapshotters = append(d.Snapshotters, p.ID)
		case p.Type == "io.containerd.runtime.v2":
			d.Runtimes = append(d.Runtimes, p.ID)
			for _, pl := range p.Platforms {
				d.Platforms = append(d.Platforms, pl.OS+"/"+pl.Architecture)
			}
			if schemes := p.Exports["log-uri-schemes"]; schemes != "" {
				d.LogSchemes = strings.Split(schemes, ",")
			}
			d.Root = p.Exports["root"]
		}
	}
	return nil
}

func (s *session) printInfo(d *infoDetail) {
	for _, line := range []struct{ name, value string }{
		{"Server", strings.TrimSpace(d.Server.Version + " " + d.Server.Revision)},
		{"UUID", d.Server.UUID},
		{"Address", d.Address},
		{"Root", d.Root},
		{"Namespace", d.Namespace},
		{"Namespaces", strings.Join(d.Namespaces, ", ")},
		{"Containers", fmt.Sprintf("%d (%d running)", d.Containers, d.Running)},
		{"Images", fmt.Sprint(d.Images)},
		{"Snapshotters", strings.Join(d.Snapshotters, ", ")},
		{"Platforms", strings.Join(d.Platforms, ", ")},
		{"Log URIs", strings.Join(d.LogSchemes, ", ")},
		{"Failed", strings.Join(d.Failed, ", ")},
	} {
		if line.value != "" {
			s.printf("%-13s %s\n", line.name+":", line.value)
		}
	}
}
