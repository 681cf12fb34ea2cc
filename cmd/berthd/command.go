package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/version"
)

const description = `berthd runs containers for clients of containerd's API: berth, ctr, nerdctl,
BuildKit, Docker and programs written on containerd's Go client.

Containers do not end with berthd. Stop it, kill it, upgrade it: the next one
takes them up. Several instances run side by side when --root, --state and
--address differ.

Signals: TERM and INT stop it, a second one at once; USR1 writes the stacks of
all goroutines to standard error.`

func newCommand() *cli.Command {
	built := version.Get()
	return &cli.Command{
		Name:            "berthd",
		Usage:           "container engine daemon",
		Description:     description,
		Version:         fmt.Sprintf("%s %s (%s)", built.Version, built.Revision, built.Go),
		HideHelpCommand: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read `FILE`; by default " + defaultConfigFile + " if it is there"},
			&cli.StringFlag{Name: "root", Usage: "keep images, snapshots and records in `DIR`"},
			&cli.StringFlag{Name: "state", Usage: "keep bundles and sockets in `DIR`"},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "serve the API on the unix socket `PATH`"},
			&cli.StringFlag{Name: "log-level", Aliases: []string{"l"}, Usage: "log from `LEVEL` on: debug, info, warn, error"},
			&cli.StringFlag{Name: "log-format", Usage: "log as `FORMAT`: text, json"},
		},
		// Errors are printed by main, once.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		OnUsageError: func(_ context.Context, _ *cli.Command, err error, _ bool) error {
			return usageError{fmt.Errorf("%w (see berthd --help)", err)}
		},
		Before: noArguments,
		Action: func(ctx context.Context, c *cli.Command) error {
			cfg, err := effectiveConfig(c)
			if err != nil {
				return usageError{err}
			}
			return serve(ctx, cfg)
		},
		Commands: []*cli.Command{configCommand(), publishCommand(func(_ context.Context, c *cli.Command) (*config, error) {
			return effectiveConfig(c)
		})},
	}
}

// noArguments refuses words that are no command.
func noArguments(ctx context.Context, c *cli.Command) (context.Context, error) {
	if name := c.Args().First(); name != "" && c.Command(name) == nil {
		return ctx, usageError{fmt.Errorf("unknown command %q (see berthd --help)", name)}
	}
	return ctx, nil
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print configurations",
		Commands: []*cli.Command{
			{
				Name:  "default",
				Usage: "print the configuration that berthd has without a file",
				Action: func(context.Context, *cli.Command) error {
					return defaultConfig().write(os.Stdout)
				},
			},
			{
				Name:  "dump",
				Usage: "print the configuration that berthd has with its file and flags",
				Action: func(_ context.Context, c *cli.Command) error {
					cfg, err := effectiveConfig(c.Root())
					if err != nil {
						return usageError{err}
					}
					return cfg.write(os.Stdout)
				},
			},
		},
	}
}
