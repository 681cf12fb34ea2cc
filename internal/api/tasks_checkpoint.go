package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/task"
)

// Checkpoint stores a container's processes. With an image path in the options
// they go to that directory and nothing is returned; without one they become
// two blobs in the content store, the processes and the container's spec.
func (s *Tasks) Checkpoint(ctx context.Context, r *tasksapi.CheckpointTaskRequest) (*tasksapi.CheckpointTaskResponse, error) {
	descriptors, err := s.checkpoint(ctx, r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &tasksapi.CheckpointTaskResponse{Descriptors: descriptors}, nil
}

func (s *Tasks) checkpoint(ctx context.Context, r *tasksapi.CheckpointTaskRequest) ([]*types.Descriptor, error) {
	record, err := s.cfg.Containers.Get(ctx, r.ContainerID)
	if err != nil {
		return nil, err
	}
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, err
	}
	dir, err := imagePath(record.Runtime.Name, r.Options)
	if err != nil {
		return nil, err
	}
	if dir != "" {
		return nil, t.Checkpoint(ctx, task.CheckpointConfig{Path: dir, Options: fromAny(r.Options)})
	}
	if err := os.MkdirAll(s.cfg.TempDir, 0o700); err != nil {
		return nil, err
	}
	if dir, err = os.MkdirTemp(s.cfg.TempDir, "checkpoint-"); err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays is removed at the next start
	if err := t.Checkpoint(ctx, task.CheckpointConfig{Path: dir, Options: fromAny(r.Options)}); err != nil {
		return nil, err
	}
	return s.storeCheckpoint(ctx, record, dir)
}

// imagePath returns the directory that a client wants its checkpoint in.
func imagePath(runtime string, options *anypb.Any) (string, error) {
	if options == nil {
		return "", nil
	}
	var o runcoptions.CheckpointOptions
	if !typeurl.Is(options, &o) {
		return "", fmt.Errorf("invalid task checkpoint option for %s: %s: %w", runtime, options.GetTypeUrl(), errdefs.ErrInvalidArgument)
	}
	if err := typeurl.UnmarshalTo(options, &o); err != nil {
		return "", fmt.Errorf("invalid task checkpoint option for %s: %w: %w", runtime, err, errdefs.ErrInvalidArgument)
	}
	return o.ImagePath, nil
}

func (s *Tasks) storeCheckpoint(ctx context.Context, record containers.Container, dir string) ([]*types.Descriptor, error) {
	processes, err := s.store(ctx, record.ID, images.MediaTypeContainerd1Checkpoint, func(w io.Writer) error {
		return archive.WriteDiff(ctx, w, "", dir)
	})
	if err != nil {
		return nil, fmt.Errorf("store checkpoint of container %q: %w", record.ID, err)
	}
	spec, err := proto.Marshal(typeurl.MarshalProto(record.Spec))
	if err != nil {
		return nil, fmt.Errorf("encode spec of container %q: %w", record.ID, err)
	}
	config, err := s.store(ctx, record.ID, images.MediaTypeContainerd1CheckpointConfig, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(spec))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store spec of container %q: %w", record.ID, err)
	}
	return []*types.Descriptor{processes, config}, nil
}

// store writes a blob of a size and digest that are known at its end. A blob
// that cannot be written leaves no ingest.
func (s *Tasks) store(ctx context.Context, container, mediaType string, write func(io.Writer) error) (_ *types.Descriptor, retErr error) {
	ref := "task-checkpoint-" + container + "-" + rand.Text()
	w, err := s.cfg.Content.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: mediaType}))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := w.Close(); err != nil && retErr == nil {
			retErr = err
		}
		if retErr != nil {
			if err := s.cfg.Content.Abort(context.WithoutCancel(ctx), ref); err != nil && !errdefs.IsNotFound(err) {
				retErr = errors.Join(retErr, err)
			}
		}
	}()
	if err := write(w); err != nil {
		return nil, err
	}
	status, err := w.Status()
	if err != nil {
		return nil, err
	}
	dgst := w.Digest()
	if err := w.Commit(ctx, status.Offset, dgst); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return &types.Descriptor{
		MediaType: mediaType, Digest: dgst.String(), Size: status.Offset, Annotations: map[string]string{},
	}, nil
}

// checkpointFor unpacks a checkpoint's blob into a directory, from which the
// runtime restores it at start. The directory goes with that start, with the
// task, or with a failed create.
func (s *Tasks) checkpointFor(ctx context.Context, id task.ID, d *types.Descriptor) (_ string, retErr error) {
	if d.Digest == "" && d.Annotations[restoreFromPath] != "" {
		return "", fmt.Errorf("container %q: restore from a directory by annotation is not supported (set criu_image_path in the task's options): %w",
			id.Container, errdefs.ErrNotImplemented)
	}
	if d.MediaType != images.MediaTypeContainerd1Checkpoint {
		return "", fmt.Errorf("container %q: unsupported checkpoint type %q (want %s): %w",
			id.Container, d.MediaType, images.MediaTypeContainerd1Checkpoint, errdefs.ErrInvalidArgument)
	}
	dgst, err := digest.Parse(d.Digest)
	if err != nil {
		return "", fmt.Errorf("container %q: checkpoint digest %q: %w: %w", id.Container, d.Digest, err, errdefs.ErrInvalidArgument)
	}
	blob, err := s.cfg.Content.ReaderAt(ctx, ocispec.Descriptor{MediaType: d.MediaType, Digest: dgst, Size: d.Size})
	if err != nil {
		return "", fmt.Errorf("container %q: open checkpoint: %w", id.Container, err)
	}
	defer func() { _ = blob.Close() }() // read only

	dir, err := s.makeRestoreDir(id)
	if err != nil {
		return "", err
	}
	if _, err := archive.Apply(ctx, dir, content.NewReader(blob)); err != nil {
		return "", errors.Join(fmt.Errorf("container %q: unpack checkpoint: %w", id.Container, err), os.RemoveAll(dir))
	}
	return dir, nil
}

// makeRestoreDir makes the one directory that a container of that id may
// restore from. One that is there belongs to a create in progress, to a task
// not yet started, or to nobody; a task is found by Create.
func (s *Tasks) makeRestoreDir(id task.ID) (string, error) {
	dir, err := s.restoreDir(id)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	err = os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("container %q: a restored task is being created or waits for its start: %w", id.Container, errdefs.ErrAlreadyExists)
	}
	return dir, err
}

func (s *Tasks) restoreDir(id task.ID) (string, error) {
	for _, name := range []string{id.Namespace, id.Container} {
		if err := identifiers.Validate(name); err != nil {
			return "", err
		}
	}
	return filepath.Join(s.cfg.TempDir, "restore", id.Namespace, id.Container), nil
}

// dropRestore removes what a restored task was created from, if it was. The
// task itself does not depend on it any more.
func (s *Tasks) dropRestore(ctx context.Context, container string) {
	ns, ok := namespaces.Namespace(ctx)
	if !ok {
		return
	}
	dir, err := s.restoreDir(task.ID{Namespace: ns, Container: container})
	if err != nil {
		return // an id that never had one
	}
	if err := os.RemoveAll(dir); err != nil {
		s.cfg.Log.WarnContext(ctx, "checkpoint directory stays until the next start", slog.String("dir", dir), slog.Any("error", err))
	}
}

// Reclaim removes what an earlier daemon left of checkpoints on their way to
// the content store. It is called before the first client comes. The function
// it returns is to be called when the runner knows its tasks; it removes the
// directories that no task waits to be restored from.
func (s *Tasks) Reclaim() (afterLoad func(context.Context) error, err error) {
	dir := os.DirFS(s.cfg.TempDir)
	unfinished, err := fs.Glob(dir, "checkpoint-*")
	errs := []error{err}
	for _, name := range unfinished {
		errs = append(errs, os.RemoveAll(filepath.Join(s.cfg.TempDir, name)))
	}
	// A directory of this list cannot become a new create's: it is there.
	restores, err := fs.Glob(dir, "restore/*/*")
	errs = append(errs, err)
	afterLoad = func(ctx context.Context) error {
		var errs []error
		for _, name := range restores {
			id := task.ID{Namespace: filepath.Base(filepath.Dir(name)), Container: filepath.Base(name)}
			if _, err := s.cfg.Runner.Get(ctx, id); errdefs.IsNotFound(err) {
				errs = append(errs, os.RemoveAll(filepath.Join(s.cfg.TempDir, name)))
			}
		}
		return errors.Join(errs...)
	}
	return afterLoad, errors.Join(errs...)
}
