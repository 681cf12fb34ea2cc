package cli

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
)

func (a *App) tagCommand() *cli.Command {
	return &cli.Command{
		Name:        "tag",
		Usage:       "give an image another name",
		ArgsUsage:   "IMAGE NEW-NAME",
		Category:    "Images",
		Description: "Example:\n  berth tag alpine registry.example/team/alpine:2024",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Value: true, Usage: "take the name from another image; --force=false refuses"}},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 2 {
				return usageError("name the image and its new name (berth tag IMAGE NEW-NAME)")
			}
			target, err := fullName(cmd.Args().Get(1))
			if err != nil {
				return err
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.tag(ctx, cmd.Args().First(), target, cmd.Bool("force"))
			})
		},
	}
}

func (s *session) tag(ctx context.Context, name, target string, force bool) error {
	img, err := s.findImage(ctx, name)
	if err != nil {
		return err
	}
	if img.Name == target {
		return nil
	}
	store := s.client.ImageService()
	copied := images.Image{Name: target, Target: img.Target, Labels: img.Labels}
	_, err = store.Create(ctx, copied)
	if errdefs.IsAlreadyExists(err) && force {
		_, err = store.Update(ctx, copied)
	}
	switch {
	case errdefs.IsAlreadyExists(err):
		return say(errdefs.ErrAlreadyExists, "image %q: there already (leave out --force=false to replace it)", target)
	case err != nil:
		return fmt.Errorf("image %q: tag: %w", target, err)
	}
	return nil
}
