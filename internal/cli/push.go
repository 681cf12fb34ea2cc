package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func (a *App) pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "send an image to a registry",
		ArgsUsage: "IMAGE [REMOTE-NAME]",
		Category:  "Images",
		Description: `Sends what is here for this platform, unless others are named. A registry on
this machine is spoken to in plain HTTP. Examples:
  berth push registry.example/team/app:1
  berth push --user me app:1 registry.example/team/app:1`,
		Flags:                  registryFlags(),
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() < 1 || cmd.NArg() > 2 {
				return usageError("name one image, and how it is called there if that differs (berth push IMAGE [REMOTE-NAME])")
			}
			req, err := a.newPullRequest(ctx, cmd)
			if err != nil {
				return err
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.push(ctx, cmd.Args().First(), firstOf(cmd.Args().Get(1), cmd.Args().First()), req)
			})
		},
	}
}

func (s *session) push(ctx context.Context, name, remote string, r pullRequest) error {
	img, err := s.findImage(ctx, name)
	if err != nil {
		return err
	}
	full, err := fullName(remote)
	if err != nil {
		return err
	}
	dst, err := r.registry(ctx, full)
	if err != nil {
		return err
	}
	ps := r.platforms
	if len(ps) == 0 {
		ps = []ocispec.Platform{platforms.DefaultSpec()}
	}
	if r.allPlatforms {
		ps = nil
	}
	progress := s.progress(r.progress)
	err = s.transfer(ctx, image.NewStore(img.Name, image.WithPlatforms(ps...)), dst, progress)
	progress.end()
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("image %q: push to %s: %w", img.Name, full, err)
	}
	if err == nil {
		s.done(r.progress, full)
	}
	return err
}
