package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/cli/runspec"
)

// resourcesType is the type URL that containerd's clients give resources.
const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

func (a *App) updateCommand() *cli.Command {
	flags := []cli.Flag{str("restart", "a new restart `POLICY`: no, always, unless-stopped or on-failure[:COUNT]")}
	for _, f := range limitFlags() {
		// These are fixed when a container is made.
		switch f.Names()[0] {
		case "rdt-class", "blockio-class", "blockio-config-file":
			continue
		}
		flags = append(flags, f)
	}
	return &cli.Command{
		Name:      "update",
		Usage:     "change the limits of containers, also while they run",
		ArgsUsage: "CONTAINER…",
		Category:  "Containers",
		Description: `Limits that are not named stay. Examples:
  berth update --memory 256m --cpus 0.5 web
  berth update --pids-limit 50 web worker
  berth update --restart always web`,
		Flags: flags,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			var p plan
			if err := p.readLimits(cmd); err != nil {
				return err
			}
			if err := p.spec.Check(); err != nil {
				return err
			}
			if s := cmd.String("restart"); s != "" {
				var err error
				if p.restart, err = runspec.ParseRestart(s); err != nil {
					return err
				}
			}
			change, err := runspec.Limits(ctx, &p.spec.Resources)
			if err != nil {
				return err
			}
			if change == nil && p.restart.Policy == "" {
				return usageError("nothing to change (see berth update --help)")
			}
			return a.each(ctx, cmd, "container", func(ctx context.Context, s *session, id string) error {
				return s.update(ctx, id, change, p.restart)
			})
		},
	}
}

// update changes a container's record, for its next start, and its task.
func (s *session) update(ctx context.Context, id string, change *specs.LinuxResources, restart runspec.Restart) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return containerError(id, err)
	}
	m := &made{Container: c}
	if m.record, err = readRecord(&c); err != nil {
		return err
	}
	if change != nil {
		if err := s.updateLimits(ctx, m, change); err != nil {
			return err
		}
	}
	if restart.Policy != "" {
		if err := s.updateRestart(ctx, m, restart); err != nil {
			return err
		}
	}
	s.printf("%s\n", id)
	return nil
}

func (s *session) updateLimits(ctx context.Context, m *made, change *specs.LinuxResources) error {
	spec, err := containerSpec(&m.Container)
	if err != nil {
		return err
	}
	value, err := json.Marshal(change)
	if err != nil {
		return err
	}
	// The task first: what the runtime refuses is not to stand in the record.
	_, err = s.client.TaskService().Update(ctx, &tasks.UpdateTaskRequest{
		ContainerID: m.ID, Resources: &anypb.Any{TypeUrl: resourcesType, Value: value},
	})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %q: %w", m.ID, err)
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	// What is not in the change stays: the members are written over.
	if err := json.Unmarshal(value, spec.Linux.Resources); err != nil {
		return err
	}
	return s.storeSpec(ctx, m, spec)
}
