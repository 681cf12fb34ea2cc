package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/version"
	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v3"

	built "github.com/berthd/berth/internal/version"
)

// containerdName is the name under which berthd takes containerd's command
// line, configuration and directories.
const containerdName = "containerd"

const containerdDescription = `This is berthd, called by the name of containerd: it takes containerd's flags,
configuration file and directories. What it does not know in that file it names
in a warning.`

// newContainerdCommand is the command line for those who start containerd.
func newContainerdCommand() *cli.Command {
	about := built.Get()
	return &cli.Command{
		Name:            containerdName,
		Usage:           "container engine daemon (Berth)",
		Description:     containerdDescription,
		Version:         about.Version,
		HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "config", Aliases: []string{"c"}, Usage: "read `FILE`, of configuration version 1 to 4",
				Value: filepath.Join(defaults.DefaultConfigDir, "config.toml"),
			},
			&cli.StringFlag{Name: "log-level", Aliases: []string{"l"}, Usage: "log from `LEVEL` on: trace, debug, info, warn, error, fatal, panic"},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "serve the API on the unix socket `PATH`"},
			&cli.StringFlag{Name: "root", Usage: "keep images, snapshots and records in `DIR`"},
			&cli.StringFlag{Name: "state", Usage: "keep bundles and sockets in `DIR`"},
		},
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		OnUsageError: func(_ context.Context, _ *cli.Command, err error, _ bool) error {
			return usageError{fmt.Errorf("%w (see containerd --help)", err)}
		},
		Before: noArguments,
		Action: func(ctx context.Context, c *cli.Command) error {
			cfg, unknown, err := containerdConfig(ctx, c)
			if err != nil {
				return usageError{err}
			}
			cfg.warnings = unknown
			return serve(ctx, cfg)
		},
		Commands: []*cli.Command{
			{
				Name:  "config",
				Usage: "print configurations",
				Commands: []*cli.Command{
					{Name: "default", Usage: "print the configuration without a file", Action: printContainerdDefault},
					{Name: "dump", Usage: "print the configuration with its file and imports", Action: printContainerdConfig},
					{Name: "migrate", Usage: "print the configuration in the newest version", Action: printContainerdConfig},
				},
			},
			publishCommand(func(ctx context.Context, c *cli.Command) (*config, error) {
				cfg, _, err := containerdConfig(ctx, c)
				return cfg, err
			}),
			hookCommand(),
		},
	}
}

// containerdDefaults is what containerd has without a file.
func containerdDefaults() *srvconfig.Config {
	return &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    defaults.DefaultRootDir,
		State:   defaults.DefaultStateDir,
		Imports: []string{defaults.DefaultConfigIncludePattern},
		Plugins: map[string]any{serverGRPC: map[string]any{"address": defaults.DefaultAddress}},
		// Never nil: imports are merged into them.
		StreamProcessors: map[string]srvconfig.StreamProcessor{},
		ProxyPlugins:     map[string]srvconfig.ProxyPlugin{},
		Timeouts:         map[string]string{},
	}
}

// containerdConfig is the default, under the file and its imports, under the
// flags. It also names what of the file Berth does not know.
func containerdConfig(ctx context.Context, c *cli.Command) (*config, []string, error) {
	file := containerdDefaults()
	path := c.Root().String("config")
	if err := checkContainerdFile(path); err == nil {
		if err := srvconfig.LoadConfig(ctx, path, file); err != nil {
			return nil, nil, fmt.Errorf("config %s: %w", path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) || c.Root().IsSet("config") {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	cfg, unknown, err := fromContainerd(file)
	if err != nil {
		return nil, nil, fmt.Errorf("config %s: %w", path, err)
	}
	for name, field := range map[string]*string{"root": &cfg.Root, "state": &cfg.State, "address": &cfg.GRPC.Address} {
		if v := c.Root().String(name); v != "" {
			*field = v
		}
	}
	if v := c.Root().String("log-level"); v != "" {
		cfg.Log.Level = containerdLevel(v)
	}
	return cfg, unknown, cfg.complete()
}

// checkContainerdFile keeps the library from reading what cannot be a
// configuration.
func checkContainerdFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfigSize {
		return fmt.Errorf("%s is not a file of at most %d bytes", path, maxConfigSize)
	}
	return nil
}

func printContainerdDefault(context.Context, *cli.Command) error {
	cfg, _, err := fromContainerd(containerdDefaults())
	if err != nil {
		return err
	}
	return writeContainerd(cfg)
}

func printContainerdConfig(ctx context.Context, c *cli.Command) error {
	cfg, unknown, err := containerdConfig(ctx, c)
	if err != nil {
		return usageError{err}
	}
	for _, text := range unknown {
		fmt.Fprintln(os.Stderr, "containerd: warning:", text)
	}
	return writeContainerd(cfg)
}

// writeContainerd prints what Berth knows as a file of containerd's newest
// version.
func writeContainerd(cfg *config) error {
	enc := toml.NewEncoder(os.Stdout)
	enc.SetIndentTables(true)
	return enc.Encode(toContainerd(cfg))
}
