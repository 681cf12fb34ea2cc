package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/attach"
)

func (a *App) systemCommand() *cli.Command {
	info := a.infoCommand()
	info.Category = ""
	return &cli.Command{
		Name: "system", Usage: "describe the daemon, or free its space (info, prune)", Category: "Daemon",
		Description: "Example:\n  berth system prune",
		Commands: []*cli.Command{info, {
			Name:  "prune",
			Usage: "remove containers that do not run, and with --all the images that no container uses",
			Description: `Asks first on a terminal; elsewhere --force is needed. Examples:
  berth system prune
  berth system prune --force --all`,
			Flags: []cli.Flag{
				yes("force", "do not ask", "f"),
				yes("all", "also the images that no container uses", "a"),
			},
			UseShortOptionHandling: true,
			Action: func(ctx context.Context, cmd *cli.Command) error {
				what := "every container that does not run"
				if cmd.Bool("all") {
					what += ", and every image that no container uses then"
				}
				if err := a.confirm(ctx, cmd, what); err != nil {
					return err
				}
				return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
					err := s.pruneContainers(ctx)
					if cmd.Bool("all") {
						err = errors.Join(err, s.pruneImages(ctx))
					}
					return errors.Join(err, s.collect(ctx))
				})
			},
		}},
	}
}

func (a *App) imagePruneCommand() *cli.Command {
	return &cli.Command{
		Name:        "prune",
		Usage:       "remove every image that no container uses",
		Description: "Asks first on a terminal; elsewhere --force is needed. Example:\n  berth image prune --force",
		Flags:       []cli.Flag{yes("force", "do not ask", "f")},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := a.confirm(ctx, cmd, "every image that no container uses"); err != nil {
				return err
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return errors.Join(s.pruneImages(ctx), s.collect(ctx))
			})
		},
	}
}

// confirm asks the user, where there is one.
func (a *App) confirm(ctx context.Context, cmd *cli.Command, what string) error {
	if cmd.Bool("force") {
		return nil
	}
	if !attach.IsTerminal(a.Stdin) {
		return usageError("this removes %s (give --force to do it)", what)
	}
	fmt.Fprintf(a.Stderr, "This removes %s in namespace %q. Go on? [y/N] ", what, globals(cmd).namespace)
	line, err := a.readLine(ctx)
	if ctx.Err() != nil {
		return err
	}
	if err == nil && strings.HasPrefix(strings.ToLower(strings.TrimSpace(line)), "y") {
		return nil
	}
	return errors.New("not confirmed, nothing is removed")
}

// pruneContainers prints the names of what it removes.
func (s *session) pruneContainers(ctx context.Context) error {
	rows, err := s.listContainers(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range rows {
		if r.Status != "created" && r.Status != "exited" {
			continue
		}
		c, err := s.client.ContainerService().Get(ctx, r.ID)
		if err == nil {
			err = s.remove(ctx, &c, false)
		}
		switch {
		case err == nil:
			s.printf("%s\n", r.ID)
		case !errdefs.IsNotFound(err):
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *session) pruneImages(ctx context.Context) error {
	list, err := s.client.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	containers, err := s.client.ContainerService().List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	used := make(map[string]bool)
	for _, c := range containers {
		used[c.Image] = true
	}
	var errs []error
	for _, img := range list {
		if used[img.Name] {
			continue
		}
		switch err := s.client.ImageService().Delete(ctx, img.Name); {
		case err == nil:
			s.printf("%s\n", img.Name)
		case !errdefs.IsNotFound(err):
			errs = append(errs, imageError(img.Name, err))
		}
	}
	return errors.Join(errs...)
}

// collect waits for a garbage collection, so that the space is free when the
// command has ended: the synchronous end of a lease brings one.
func (s *session) collect(ctx context.Context) error {
	l := s.startLease(ctx)
	if _, err := l.context(ctx); err != nil {
		return err
	}
	if err := s.client.LeasesService().Delete(ctx, l.lease, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("collect the garbage: %w", err)
	}
	return nil
}
