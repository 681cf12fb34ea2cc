package cli

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
)

func (a *App) rmiCommand() *cli.Command {
	return &cli.Command{
		Name:      "rmi",
		Usage:     "remove images",
		ArgsUsage: "IMAGE…",
		Category:  "Images",
		Description: `The content goes when nothing else uses it. Examples:
  berth rmi alpine
  berth rmi -f --sync old:1 old:2`,
		Flags: []cli.Flag{
			yes("force", "also when a container uses it; an image that is not there is no error", "f"),
			yes("sync", "return when the content is gone"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.each(ctx, cmd, "image", func(ctx context.Context, s *session, name string) error {
				return s.removeImage(ctx, name, cmd.Bool("force"), cmd.Bool("sync"))
			})
		},
	}
}

// removeImage prints the name of what it removed.
func (s *session) removeImage(ctx context.Context, name string, force, sync bool) error {
	img, err := s.findImage(ctx, name)
	if errdefs.IsNotFound(err) && force {
		return nil
	}
	if err != nil {
		return err
	}
	if !force {
		users, err := s.client.ContainerService().List(ctx, fmt.Sprintf("image==%q", img.Name))
		if err != nil {
			return fmt.Errorf("image %q: list its containers: %w", name, err)
		}
		if len(users) > 0 {
			return say(errdefs.ErrFailedPrecondition, "image %q: container %q uses it (remove that first, or use berth rmi -f)", name, users[0].ID)
		}
	}
	var opts []images.DeleteOpt
	if sync {
		opts = append(opts, images.SynchronousDelete())
	}
	if err := s.client.ImageService().Delete(ctx, img.Name, opts...); err != nil {
		return imageError(name, err)
	}
	s.printf("%s\n", img.Name)
	return nil
}
