package storage

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds what of an image is read into memory in one piece, in
// bytes. Registries take manifests of 4 MiB at most.
const maxDocument = 16 << 20

// documentStore refuses to open an index, manifest or configuration that is too
// large: whoever reads one reads all of it, and its size is the word of whoever
// made the image.
type documentStore struct {
	content.Store
}

func (s documentStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	if err != nil || !isDocument(desc.MediaType) || ra.Size() <= maxDocument {
		return ra, err
	}
	if err := ra.Close(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s %s has %d bytes, at most %d are allowed: %w",
		desc.MediaType, desc.Digest, ra.Size(), maxDocument, errdefs.ErrInvalidArgument)
}

func isDocument(mediaType string) bool {
	return images.IsIndexType(mediaType) || images.IsManifestType(mediaType) || images.IsConfigType(mediaType)
}
