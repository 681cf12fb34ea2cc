package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) restoreCommand() *cli.Command {
	return &cli.Command{
		Name:      "restore",
		Usage:     "make a container of a checkpoint and run it",
		ArgsUsage: "CONTAINER [IMAGE]",
		Category:  "Containers",
		Description: `With --live its processes go on where they were saved; else its command is run
anew. It runs in the background, with a log, unless --attach or --interactive is
given. With --image-path a container that is there, and does not run, goes on
from a dump of checkpoint --image-path. A checkpoint says all of a container,
also what it may do to this host: restore what you trust. Examples:
  berth restore --live --rw web2 backup/web:1
  berth checkpoint --exit --image-path /srv/dump web && berth restore --image-path /srv/dump web`,
		Flags: append([]cli.Flag{
			yes("live", "go on with the processes that were saved"),
			yes("rw", "with what it had written to its file system, which must have been saved"),
			str("image-path", "go on from CRIU's files in this `DIR`"),
			str("work-path", "`DIR` for CRIU's log, which stays there, and passing files (default: one of the daemon's)"),
			yes("attach", "show the output here and end with the exit code", "a"),
			str("pid-file", "write the process id to a `FILE`"),
		}, streamFlags()...),
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			switch dump := cmd.String("image-path"); {
			case dump == "" && cmd.NArg() != 2:
				return usageError("name the container to make and the checkpoint (berth restore CONTAINER IMAGE)")
			case dump == "" && cmd.String("work-path") != "" && !cmd.Bool("live"):
				return usageError("--work-path needs --live or --image-path")
			case dump != "" && (cmd.NArg() != 1 || cmd.Bool("rw")):
				return usageError("--image-path is for one container that is there: it excludes an image and --rw")
			}
			if err := runspec.CheckID(cmd.Args().First()); err != nil {
				return err
			}
			st, err := newStreams(cmd)
			if err != nil {
				return err
			}
			st.detach = !cmd.Bool("attach") && !st.interactive
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.restore(ctx, cmd, st)
			})
		},
	}
}

// restore makes the container, unless it is there, and starts it. When it
// cannot be started, what was made is taken away.
func (s *session) restore(ctx context.Context, cmd *cli.Command, st *streams) error {
	id, dump := cmd.Args().First(), cmd.String("image-path")
	undo := func() { s.discardTask(ctx, id) }
	var live *types.Descriptor
	if dump == "" {
		made, processes, err := s.restoreContainer(ctx, id, cmd.Args().Get(1), cmd.Bool("rw"), cmd.Bool("live"))
		if err != nil {
			return err
		}
		live, undo = processes, func() { s.discard(ctx, made) }
	}
	m, err := s.startable(ctx, id, st)
	if err == nil {
		m.checkpoint = live
		err = m.restoreFrom(dump, cmd.String("work-path"))
	}
	if err != nil {
		if dump == "" {
			undo()
		}
		return err
	}
	return s.startMade(ctx, cmd, m, st, undo)
}

// restoreFrom lets the task's create read CRIU's files from a directory.
func (m *made) restoreFrom(dump, work string) error {
	if dump == "" && work == "" {
		return nil
	}
	opts := &options.Options{}
	if have := m.Runtime.Options; have != nil && len(have.GetValue()) > 0 {
		if !typeurl.Is(have, opts) {
			return say(errdefs.ErrFailedPrecondition, "container %q: its runtime has options of its own, which --image-path and --work-path cannot be added to", m.ID)
		}
		if err := typeurl.UnmarshalTo(have, opts); err != nil {
			return fmt.Errorf("container %q: options of the runtime: %w", m.ID, err)
		}
	}
	for _, dir := range []struct {
		given string
		to    *string
	}{{dump, &opts.CriuImagePath}, {work, &opts.CriuWorkPath}} {
		if dir.given == "" {
			continue
		}
		abs, err := filepath.Abs(dir.given) // the daemon reads it
		if err != nil {
			return err
		}
		*dir.to = abs
	}
	var err error
	m.taskOptions, err = typeurl.MarshalAnyToProto(opts)
	return err
}

// restoreContainer makes a container of a checkpoint, and returns it with the
// descriptor of its processes where live. When it fails nothing is left.
func (s *session) restoreContainer(ctx context.Context, id, name string, rw, live bool) (_ *made, processes *types.Descriptor, err error) {
	img, index, err := s.checkpointIndex(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if live {
		d, err := containerd.GetIndexByMediaType(index, images.MediaTypeContainerd1Checkpoint)
		if err != nil {
			return nil, nil, say(errdefs.ErrFailedPrecondition, "checkpoint %q: it holds no processes (leave out --live to run its command anew)", name)
		}
		processes = &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size}
	}
	if _, err := containerd.GetIndexByMediaType(index, ocispec.MediaTypeImageLayerGzip); rw && err != nil {
		return nil, nil, say(errdefs.ErrFailedPrecondition, "checkpoint %q: it holds no files (make it with berth checkpoint --rw, or leave out --rw)", name)
	}
	if err := s.unpackBase(ctx, name, index); err != nil {
		return nil, nil, err
	}
	m, prepared := &made{}, false
	note := func(fn func(*containers.Container) error) containerd.RestoreOpts {
		return func(context.Context, string, *containerd.Client, containerd.Image, *ocispec.Index) containerd.NewContainerOpts {
			return func(_ context.Context, _ *containerd.Client, c *containers.Container) error { return fn(c) }
		}
	}
	opts := []containerd.RestoreOpts{
		containerd.WithRestoreImage,
		note(func(c *containers.Container) error {
			m.Container, prepared = *c, true
			return nil
		}),
		containerd.WithRestoreSpec, containerd.WithRestoreRuntime,
		note(func(c *containers.Container) error { return s.adapt(c, m) }),
	}
	if rw {
		opts = append(opts, containerd.WithRestoreRW)
	}
	c, err := s.client.Restore(ctx, id, containerd.NewImage(s.client, img), opts...)
	if err == nil {
		m.Container, err = c.Info(ctx, containerd.WithoutRefreshedMetadata)
		return m, processes, err
	}
	if prepared {
		s.removeSnapshot(ctx, m.Snapshotter, m.SnapshotKey)
	}
	if errdefs.IsAlreadyExists(err) {
		return nil, nil, s.taken(ctx, id)
	}
	return nil, nil, fmt.Errorf("checkpoint %q: restore: %w", name, err)
}

// adapt gives a container of a checkpoint its own cgroup and berth's notes.
func (s *session) adapt(c *containers.Container, m *made) error {
	spec, err := containerSpec(c)
	if err != nil {
		return err
	}
	m.record.Terminal = spec.Process.Terminal
	// The default path has the name of the container that was saved.
	prefix := "/" + s.namespace + "/"
	if spec.Linux != nil && strings.HasPrefix(spec.Linux.CgroupsPath, prefix) && strings.Count(spec.Linux.CgroupsPath, "/") == 2 {
		if err := setCgroup(c, prefix+c.ID); err != nil {
			return err
		}
	}
	return m.record.put(c)
}

// setCgroup changes that one member and keeps every other, known or not.
func setCgroup(c *containers.Container, cgroup string) error {
	var spec, linux map[string]json.RawMessage
	err := json.Unmarshal(c.Spec.GetValue(), &spec)
	if err == nil {
		err = json.Unmarshal(spec["linux"], &linux)
	}
	if err == nil {
		linux["cgroupsPath"], err = json.Marshal(cgroup)
	}
	if err == nil {
		spec["linux"], err = json.Marshal(linux)
	}
	if err != nil {
		return fmt.Errorf("container %q: specification: %w", c.ID, err)
	}
	value, err := json.Marshal(spec)
	c.Spec = &anypb.Any{TypeUrl: c.Spec.GetTypeUrl(), Value: value}
	return err
}

// checkpointIndex finds a checkpoint and reads what it consists of.
func (s *session) checkpointIndex(ctx context.Context, name string) (images.Image, *ocispec.Index, error) {
	img, err := s.findImage(ctx, name)
	if err != nil {
		return img, nil, err
	}
	docs, err := s.documents()
	if err != nil {
		return img, nil, err
	}
	raw, err := docs.read(ctx, img.Target)
	if err != nil {
		return img, nil, imageError(name, err)
	}
	var index ocispec.Index
	_ = json.Unmarshal(raw, &index)
	if _, err := containerd.GetIndexByMediaType(&index, images.MediaTypeContainerd1CheckpointConfig); err != nil {
		return img, nil, say(errdefs.ErrInvalidArgument, "image %q: it is no checkpoint of a container (berth checkpoint makes one; berth run runs an image)", name)
	}
	return img, &index, nil
}

// unpackBase makes the image that the saved container was made from usable: it
// may be that the checkpoint itself holds it.
func (s *session) unpackBase(ctx context.Context, name string, index *ocispec.Index) error {
	base := index.Annotations[ocispec.AnnotationRefName]
	if base == "" {
		return say(errdefs.ErrInvalidArgument, "checkpoint %q: it does not name the image of its container", name)
	}
	img, err := s.client.ImageService().Get(ctx, base)
	if errdefs.IsNotFound(err) {
		i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return images.IsIndexType(d.MediaType) || images.IsManifestType(d.MediaType)
		})
		if i < 0 {
			return say(errdefs.ErrNotFound, "checkpoint %q: its image %q is not here (fetch it: berth pull %s)", name, base, base)
		}
		img, err = s.client.ImageService().Create(ctx, images.Image{Name: base, Target: index.Manifests[i]})
	}
	if err == nil {
		err = containerd.NewImage(s.client, img).Unpack(ctx, index.Annotations["io.containerd.checkpoint.snapshotter"])
	}
	if err != nil {
		return fmt.Errorf("image %q of checkpoint %q: %w", base, name, err)
	}
	return nil
}
