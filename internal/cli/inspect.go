package cli

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func (a *App) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print everything about containers or images, as one JSON array",
		ArgsUsage: "NAME…",
		Category:  "Containers",
		Description: `A name of both is the container. Examples:
  berth inspect web
  berth inspect --type image alpine
  berth inspect --format '{{.pid}} {{.spec.process.cwd}}' web`,
		Flags: []cli.Flag{str("type", "`KIND` of what is meant: container or image (default: either)"), formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			kind := cmd.String("type")
			if kind != "" && kind != "container" && kind != "image" {
				return usageError("--type %q: use container or image", kind)
			}
			found := []any{}
			err := a.each(ctx, cmd, "name", func(ctx context.Context, s *session, name string) error {
				v, err := s.inspect(ctx, name, kind)
				if err == nil {
					found = append(found, v)
				}
				return err
			})
			if len(found) > 0 || err == nil {
				err = errors.Join(err, a.printFound(cmd, found))
			}
			return err
		},
	}
}

// printFound prints what inspect found, also where it did not find all.
func (a *App) printFound(cmd *cli.Command, found []any) error {
	if cmd.String("format") == "" {
		return a.printJSON(found)
	}
	for _, doc := range found {
		f, err := newFormat(cmd, reflect.TypeOf(doc))
		if err != nil {
			return err
		}
		if err := f.show(a, doc); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) inspect(ctx context.Context, name, kind string) (any, error) {
	if kind != "image" {
		c, err := s.client.ContainerService().Get(ctx, name)
		if err == nil {
			return s.inspectContainer(ctx, &c)
		}
		if kind == "container" || !errdefs.IsNotFound(err) {
			return nil, containerError(name, err)
		}
	}
	img, err := s.findImage(ctx, name)
	if errdefs.IsNotFound(err) && kind == "" {
		return nil, say(errdefs.ErrNotFound, "%q: neither a container nor an image has this name (see berth ps -a and berth images)", name)
	}
	if err != nil {
		return nil, err
	}
	return s.inspectImage(ctx, img.Name)
}

// containerDetail is a container in `berth inspect`.
type containerDetail struct {
	containerRow
	Updated     time.Time       `json:"updated"`
	Snapshotter string          `json:"snapshotter,omitempty"`
	SnapshotKey string          `json:"snapshotKey,omitempty"`
	SandboxID   string          `json:"sandboxId,omitempty"`
	StopTimeout *int            `json:"stopTimeout,omitempty"`
	Streams     *streamDetail   `json:"streams,omitempty"`
	Network     *networkDetail  `json:"network,omitempty"`
	Spec        json.RawMessage `json:"spec,omitempty"`
}

type streamDetail struct {
	Terminal bool   `json:"terminal"`
	Stdin    string `json:"stdin,omitempty"`
	Stdout   string `json:"stdout,omitempty"`
	Stderr   string `json:"stderr,omitempty"`
}

func (s *session) inspectContainer(ctx context.Context, c *containers.Container) (*containerDetail, error) {
	var p *tasktypes.Process
	r, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: c.ID})
	if err = native(err); err == nil {
		p = r.Process
	} else if !errdefs.IsNotFound(err) {
		return nil, containerError(c.ID, err)
	}
	rec, err := readRecord(c)
	if err != nil {
		return nil, err
	}
	d := &containerDetail{
		containerRow: describeContainer(c, p), Updated: c.UpdatedAt, Snapshotter: c.Snapshotter,
		SnapshotKey: c.SnapshotKey, SandboxID: c.SandboxID, StopTimeout: rec.StopTimeout, Network: networkOfRecord(&rec),
	}
	if p != nil {
		d.Streams = &streamDetail{Terminal: p.Terminal, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr}
	}
	if c.Spec != nil && json.Valid(c.Spec.GetValue()) {
		d.Spec = c.Spec.GetValue()
	}
	return d, nil
}

// imageDetail is an image in `berth inspect`.
type imageDetail struct {
	Name      string             `json:"name"`
	Target    ocispec.Descriptor `json:"target"`
	Created   time.Time          `json:"created"`
	Updated   time.Time          `json:"updated"`
	Labels    map[string]string  `json:"labels"`
	ChainID   string             `json:"chainId"`
	Config    ocispec.Image      `json:"config"`
	Platforms []string           `json:"platforms"`
}

func (s *session) inspectImage(ctx context.Context, name string) (*imageDetail, error) {
	img, err := s.client.ImageService().Get(ctx, name)
	if err != nil {
		return nil, imageError(name, err)
	}
	d := &imageDetail{
		Name: img.Name, Target: img.Target, Created: img.CreatedAt, Updated: img.UpdatedAt,
		Labels: img.Labels, Platforms: []string{},
	}
	// A checkpoint has no configuration, nor has an image of another platform here.
	info, err := s.readImage(ctx, img, "")
	switch {
	case err == nil:
		d.ChainID, d.Config = info.chainID, info.config
	case !errdefs.IsNotFound(err):
		return nil, err
	}
	if d.Labels == nil {
		d.Labels = map[string]string{}
	}
	summary, err := s.summarize(ctx, img)
	if err != nil {
		return nil, err
	}
	d.Platforms = summary.Platforms
	return d, nil
}
