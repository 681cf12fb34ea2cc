package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) namespaceCommand() *cli.Command {
	each := func(fn func(ctx context.Context, s *session, name string) error) cli.ActionFunc {
		return func(ctx context.Context, cmd *cli.Command) error { return a.each(ctx, cmd, "namespace", fn) }
	}
	return &cli.Command{
		Name: "namespace", Aliases: []string{"namespaces", "ns"}, Category: "Daemon",
		Usage:       "manage namespaces (ls, create, rm, label)",
		Description: "A namespace has containers and images of its own. Example:\n  berth namespace create build && berth -n build images",
		Commands: []*cli.Command{
			{
				Name: "ls", Aliases: []string{"list"}, Usage: "list namespaces", Description: "Example:\n  berth namespace ls --json",
				Flags:                  listFlags(),
				UseShortOptionHandling: true,
				Action: func(ctx context.Context, cmd *cli.Command) error {
					out, err := newListing(cmd, namespaceColumns)
					if err != nil {
						return err
					}
					return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
						rows, err := s.listNamespaces(ctx)
						if err != nil {
							return err
						}
						return out.show(a, rows)
					})
				},
			},
			{
				Name: "create", Aliases: []string{"c"}, Usage: "make namespaces", ArgsUsage: "NAME…", Description: "Example:\n  berth namespace create build",
				Action: each(func(ctx context.Context, s *session, name string) error {
					if err := checkNamespace(name); err != nil {
						return err
					}
					return namespaceError(name, s.client.NamespaceService().Create(ctx, name, nil))
				}),
			},
			{
				Name: "rm", Aliases: []string{"remove"}, Usage: "remove namespaces that are empty", ArgsUsage: "NAME…", Description: "Example:\n  berth namespace rm build",
				Action: each(func(ctx context.Context, s *session, name string) error {
					return namespaceError(name, s.client.NamespaceService().Delete(ctx, name))
				}),
			},
			{
				Name: "label", Usage: "set labels of a namespace; KEY= takes one away", ArgsUsage: "NAME KEY=VALUE…",
				Description: "Example:\n  berth namespace label build containerd.io/defaults/snapshotter=native",
				Action: func(ctx context.Context, cmd *cli.Command) error {
					if cmd.NArg() < 2 {
						return usageError("a namespace and a label are needed (berth namespace label NAME KEY=VALUE)")
					}
					set, err := runspec.ParseLabels(cmd.Args().Tail(), "")
					if err != nil {
						return err
					}
					return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
						for key, value := range set {
							if err := s.client.NamespaceService().SetLabel(ctx, cmd.Args().First(), key, value); err != nil {
								return namespaceError(cmd.Args().First(), err)
							}
						}
						return nil
					})
				},
			},
		},
	}
}

// namespaceRow is one of `berth namespace ls --json`. The names of the fields
// stay as they are.
type namespaceRow struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
}

var namespaceColumns = columns[namespaceRow]{
	head: []string{"NAMESPACE", "LABELS"},
	cells: func(r *namespaceRow, _ bool) []string {
		var text []string
		for k, v := range r.Labels {
			text = append(text, k+"="+v)
		}
		slices.Sort(text)
		return []string{r.Name, strings.Join(text, ",")}
	},
}

func (s *session) listNamespaces(ctx context.Context) ([]namespaceRow, error) {
	names, err := s.client.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	slices.Sort(names)
	var rows []namespaceRow
	for _, name := range names {
		labels, err := s.client.NamespaceService().Labels(ctx, name)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, namespaceError(name, err)
		}
		if labels == nil {
			labels = map[string]string{}
		}
		rows = append(rows, namespaceRow{Name: name, Labels: labels})
	}
	return rows, nil
}

func namespaceError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return say(errdefs.ErrNotFound, "namespace %q: not found (berth namespace ls lists them)", name)
	case errdefs.IsAlreadyExists(err):
		return say(errdefs.ErrAlreadyExists, "namespace %q: it is there already", name)
	}
	return fmt.Errorf("namespace %q: %w", name, err)
}
