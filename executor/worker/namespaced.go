package worker

import (
	"context"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// BuildKit calls images and diffs without a namespace and lets the connection
// add it; direct calls have no connection.

type namespacedImages struct {
	images.Store
	ns string
}

func (s namespacedImages) Get(ctx context.Context, name string) (images.Image, error) {
	return s.Store.Get(namespaces.WithNamespace(ctx, s.ns), name)
}

func (s namespacedImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return s.Store.List(namespaces.WithNamespace(ctx, s.ns), filters...)
}

func (s namespacedImages) Create(ctx context.Context, image images.Image) (images.Image, error) {
	return s.Store.Create(namespaces.WithNamespace(ctx, s.ns), image)
}

func (s namespacedImages) Update(ctx context.Context, image images.Image, fields ...string) (images.Image, error) {
	return s.Store.Update(namespaces.WithNamespace(ctx, s.ns), image, fields...)
}

func (s namespacedImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	return s.Store.Delete(namespaces.WithNamespace(ctx, s.ns), name, opts...)
}

type namespacedDiff struct {
	client.DiffService
	ns string
}

func (d namespacedDiff) Apply(ctx context.Context, desc ocispecs.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispecs.Descriptor, error) {
	return d.DiffService.Apply(namespaces.WithNamespace(ctx, d.ns), desc, mounts, opts...)
}

func (d namespacedDiff) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispecs.Descriptor, error) {
	return d.DiffService.Compare(namespaces.WithNamespace(ctx, d.ns), lower, upper, opts...)
}
