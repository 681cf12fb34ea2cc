package cli

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/proto"
)

func (a *App) checkpointCommand() *cli.Command {
	return &cli.Command{
		Name:      "checkpoint",
		Usage:     "save a running container, with its processes, as an image",
		ArgsUsage: "CONTAINER [IMAGE]",
		Category:  "Containers",
		Description: `The container goes on unless --exit is given. The OCI runtime must be able to do
it: runc needs CRIU. With --image-path nothing but CRIU's files is made, in that
directory. Examples:
  berth checkpoint --rw web backup/web:1
  berth checkpoint --exit --rw --image web backup/web:1
  berth restore --live --rw web2 backup/web:1`,
		Flags: append([]cli.Flag{
			yes("exit", "end the container when it is saved"),
			yes("leave-running", "let it go on; this is what happens without --exit"),
			yes("rw", "save what it wrote to its file system; it is paused meanwhile"),
			yes("image", "let the checkpoint hold the container's image too"),
			&cli.BoolFlag{Name: "task", Value: true, Usage: "save the processes; --task=false leaves them out"},
			str("image-path", "write CRIU's files to a `DIR`, and make no image"),
			str("work-path", "`DIR` for CRIU's log, which stays there, and passing files (default: one of the daemon's)"),
			str("parent-path", "`DIR` of an earlier dump, relative to this one, that has the pages that did not change"),
		}, criuFlags()...),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() < 1 || cmd.NArg() > 2 {
				return usageError("name one container, and the image to make if it is to have a name of yours (berth checkpoint CONTAINER [IMAGE])")
			}
			opts, err := checkpointOptions(cmd)
			if err != nil {
				return err
			}
			id := cmd.Args().First()
			name := fmt.Sprintf("containerd.io/checkpoint/%s:%s", id, time.Now().Format("20060102-150405"))
			if given := cmd.Args().Get(1); given != "" {
				if name, err = fullName(given); err != nil {
					return err
				}
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.checkpoint(ctx, cmd, id, name, opts)
			})
		},
	}
}

// criuFlags tell CRIU of what a checkpoint holds.
func criuFlags() []cli.Flag {
	return []cli.Flag{
		yes("tcp-established", "save open TCP connections"),
		yes("ext-unix-sk", "let unix sockets lead out of the container"),
		yes("shell-job", "save a container on a terminal"),
		&cli.BoolFlag{Name: "file-locks", Value: true, Usage: "save locks of files"},
		list("empty-ns", "save a namespace of a `KIND` without what is in it: network"),
		str("manage-cgroups-mode", "what CRIU does with cgroups: a `MODE` of soft, full, strict, ignore (default: soft)"),
	}
}

func checkpointOptions(cmd *cli.Command) (*options.CheckpointOptions, error) {
	o := &options.CheckpointOptions{
		Exit: cmd.Bool("exit"), OpenTcp: cmd.Bool("tcp-established"), ExternalUnixSockets: cmd.Bool("ext-unix-sk"),
		Terminal: cmd.Bool("shell-job"), FileLocks: cmd.Bool("file-locks"), EmptyNamespaces: cmd.StringSlice("empty-ns"),
		CgroupsMode: cmd.String("manage-cgroups-mode"), ParentPath: cmd.String("parent-path"),
	}
	switch {
	case o.Exit && cmd.Bool("leave-running"):
		return nil, usageError("--exit and --leave-running exclude each other")
	case !cmd.Bool("task") && (o.Exit || cmd.String("image-path") != ""):
		return nil, usageError("--task=false excludes --exit and --image-path: there is nothing to save of the processes")
	case cmd.String("image-path") != "" && (cmd.NArg() > 1 || cmd.Bool("rw") || cmd.Bool("image")):
		return nil, usageError("--image-path makes no image: it excludes a name, --rw and --image")
	}
	var err error
	for _, dir := range []struct {
		flag string
		to   *string
	}{{"image-path", &o.ImagePath}, {"work-path", &o.WorkPath}} {
		if given := cmd.String(dir.flag); given != "" { // the daemon writes there
			if *dir.to, err = filepath.Abs(given); err != nil {
				return nil, fmt.Errorf("--%s: %w", dir.flag, err)
			}
		}
	}
	return o, nil
}

func (s *session) checkpoint(ctx context.Context, cmd *cli.Command, id, name string, o *options.CheckpointOptions) (err error) {
	c, err := s.client.LoadContainer(ctx, id)
	if err != nil {
		return containerError(id, err)
	}
	info, err := c.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return containerError(id, err)
	}
	service := s.client.TaskService()
	if cmd.Bool("task") {
		r, err := service.Get(ctx, &tasks.GetRequest{ContainerID: id})
		if err = native(err); err != nil {
			return notRunning(id, err)
		}
		if st := r.Process.Status; st != tasktypes.Status_RUNNING && st != tasktypes.Status_PAUSED {
			return notRunning(id, errdefs.ErrFailedPrecondition)
		}
		// What is saved of the files is to be as the processes left them.
		if cmd.Bool("rw") && !o.Exit && r.Process.Status == tasktypes.Status_RUNNING {
			if _, err := service.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id}); err != nil {
				return fmt.Errorf("container %q: pause: %w", id, native(err))
			}
			defer func() {
				ctx, cancel := cleanup(ctx)
				defer cancel()
				if _, rerr := service.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id}); rerr != nil {
					s.warnf("container %q: it stays paused: %v (berth unpause %s)", id, native(rerr), id)
				}
			}()
		}
	}
	if o.ImagePath != "" {
		return s.dump(ctx, id, o)
	}
	if info.Image == "" {
		return say(errdefs.ErrFailedPrecondition, "container %q: it was made from no image, which a checkpoint would name (use --image-path DIR)", id)
	}
	if _, err := s.client.ImageService().Get(ctx, name); err == nil {
		return say(errdefs.ErrAlreadyExists, "image %q: there already (choose another name, or remove it: berth rmi %s)", name, name)
	}
	if _, err := c.Checkpoint(ctx, name, checkpointParts(cmd, o)...); err != nil {
		return checkpointError(id, err)
	}
	s.printf("%s\n", name)
	return nil
}

// checkpointParts say what goes into the image of a checkpoint.
func checkpointParts(cmd *cli.Command, o *options.CheckpointOptions) []containerd.CheckpointOpts {
	parts := []containerd.CheckpointOpts{containerd.WithCheckpointRuntime}
	if cmd.Bool("task") {
		parts = append(parts, func(ctx context.Context, client *containerd.Client, c *containers.Container, index *ocispec.Index, _ *options.CheckpointOptions) error {
			return containerd.WithCheckpointTask(ctx, client, c, index, o)
		})
	} else {
		parts = append(parts, withCheckpointSpec)
	}
	if cmd.Bool("image") {
		parts = append(parts, containerd.WithCheckpointImage)
	}
	if cmd.Bool("rw") {
		parts = append(parts, containerd.WithCheckpointRW)
	}
	return parts
}

// dump writes CRIU's files to a directory.
func (s *session) dump(ctx context.Context, id string, o *options.CheckpointOptions) error {
	opts, err := typeurl.MarshalAnyToProto(o)
	if err != nil {
		return err
	}
	_, err = s.client.TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: id, Options: opts})
	if err != nil {
		return checkpointError(id, err)
	}
	return nil
}

// checkpointError says what helps where CRIU is missing.
func checkpointError(id string, err error) error {
	err = native(err)
	if text := strings.ToLower(err.Error()); strings.Contains(text, "criu") && strings.Contains(text, "not found") {
		return fmt.Errorf("container %q: %w (install criu, which the OCI runtime calls)", id, err)
	}
	return fmt.Errorf("container %q: %w", id, err)
}

// withCheckpointSpec puts the container's specification into a checkpoint that
// has no processes; with those the daemon does it.
func withCheckpointSpec(ctx context.Context, client *containerd.Client, c *containers.Container, index *ocispec.Index, _ *options.CheckpointOptions) error {
	data, err := proto.Marshal(typeurl.MarshalProto(c.Spec))
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: images.MediaTypeContainerd1CheckpointConfig, Digest: digest.FromBytes(data), Size: int64(len(data))}
	index.Manifests = append(index.Manifests, desc)
	return content.WriteBlob(ctx, client.ContentStore(), "checkpoint-spec-"+c.ID, bytes.NewReader(data), desc)
}
