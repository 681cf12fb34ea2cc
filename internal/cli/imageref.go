package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// maxDocument bounds an image's manifest, index and configuration.
const maxDocument = 16 << 20

// fullName completes an image's name as docker does: "alpine" is
// library/alpine:latest on the default registry.
func fullName(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", say(errdefs.ErrInvalidArgument, "image %q: %v (use [registry/]name[:tag] in lower case)", name, err)
	}
	return ref.String(), nil
}

// findImage finds an image by its full name, by the name as it stands, or by
// the beginning of its digest.
func (s *session) findImage(ctx context.Context, name string) (images.Image, error) {
	store := s.client.ImageService()
	full, nameErr := fullName(name)
	if nameErr == nil {
		img, err := store.Get(ctx, full)
		if err == nil || !errdefs.IsNotFound(err) {
			return img, imageError(name, err)
		}
	}
	if full != name {
		img, err := store.Get(ctx, name)
		if err == nil || !errdefs.IsNotFound(err) {
			return img, imageError(name, err)
		}
	}
	if img, err := s.imageByDigest(ctx, name); err == nil || !errdefs.IsNotFound(err) {
		return img, imageError(name, err)
	}
	if nameErr != nil {
		return images.Image{}, nameErr
	}
	return images.Image{}, imageError(name, errdefs.ErrNotFound)
}

// imageByDigest takes 6 to 64 hex digits, with or without "sha256:".
func (s *session) imageByDigest(ctx context.Context, name string) (images.Image, error) {
	hex := strings.TrimPrefix(name, "sha256:")
	if len(hex) < 6 || len(hex) > 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return images.Image{}, errdefs.ErrNotFound
	}
	list, err := s.client.ImageService().List(ctx, fmt.Sprintf("target.digest~=^sha256:%s", hex))
	switch {
	case err != nil:
		return images.Image{}, err
	case len(list) == 0:
		return images.Image{}, errdefs.ErrNotFound
	}
	for _, img := range list[1:] {
		if img.Target.Digest != list[0].Target.Digest {
			return images.Image{}, fmt.Errorf("%d images begin with these digits (give more of them): %w", len(list), errdefs.ErrInvalidArgument)
		}
	}
	return list[0], nil
}

func imageError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsNotFound(err):
		return say(errdefs.ErrNotFound, "image %q: not found here (fetch it: berth pull %s; berth images lists what is here)", name, name)
	}
	return fmt.Errorf("image %q: %w", name, err)
}

// imageInfo is what a container needs to know of an image.
type imageInfo struct {
	images.Image
	config  ocispec.Image
	chainID string // names the snapshot of all its layers
	// matcher chose the manifest.
	matcher platforms.MatchComparer
}

// readImage reads an image's configuration for a platform, "" for the host's.
func (s *session) readImage(ctx context.Context, img images.Image, platform string) (*imageInfo, error) {
	matcher := platforms.Default()
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w (use os/arch[/variant])", platform, err)
		}
		matcher = platforms.Only(p)
	}
	docs, err := s.documents()
	if err != nil {
		return nil, err
	}
	missing := func(err error) error {
		if errdefs.IsNotFound(err) {
			return say(errdefs.ErrNotFound, "image %q: incomplete, or not made for this platform (pull it for the platform: berth pull --platform)", img.Name)
		}
		return fmt.Errorf("image %q: %w", img.Name, err)
	}
	manifest, err := images.Manifest(ctx, docs, img.Target, matcher)
	if err != nil {
		return nil, missing(err)
	}
	if !images.IsConfigType(manifest.Config.MediaType) {
		return nil, say(errdefs.ErrInvalidArgument, "image %q: not a container image (its configuration is %q)", img.Name, manifest.Config.MediaType)
	}
	raw, err := docs.read(ctx, manifest.Config)
	if err != nil {
		return nil, missing(err)
	}
	info := &imageInfo{Image: img, matcher: matcher}
	if err := json.Unmarshal(raw, &info.config); err != nil {
		return nil, fmt.Errorf("image %q: configuration: %w", img.Name, err)
	}
	// A name may stand for one manifest, without a list to choose from.
	if is := info.config.Platform; platform != "" && is.Architecture != "" && !matcher.Match(is) {
		return nil, say(errdefs.ErrFailedPrecondition, "image %q: it is made for %s, not for %s (leave out --platform, or pull it for that one)",
			img.Name, platforms.Format(is), platform)
	}
	for _, d := range info.config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("image %q: layer %q: %w", img.Name, d, err)
		}
	}
	info.chainID = identity.ChainID(info.config.RootFS.DiffIDs).String()
	return info, nil
}

// documents reads small JSON blobs, each once and with one call: the content
// store of containerd's client asks for the size first, which a descriptor
// says already.
type documents struct {
	client contentapi.ContentClient
	have   map[digest.Digest][]byte
}

func (s *session) documents() (*documents, error) {
	conn, ok := s.client.Conn().(grpc.ClientConnInterface)
	if !ok {
		return nil, errors.New("the client has no gRPC connection")
	}
	return &documents{client: contentapi.NewContentClient(conn), have: make(map[digest.Digest][]byte)}, nil
}

// read returns a blob. It is the daemon's own content, checked when it came
// in; only its size is guarded here.
func (d *documents) read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if data, ok := d.have[desc.Digest]; ok {
		return data, nil
	}
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%s is %d bytes, more than a document may have", desc.Digest, desc.Size)
	}
	ctx, cancel := context.WithCancel(ctx) // frees the stream
	defer cancel()
	stream, err := d.client.Read(ctx, &contentapi.ReadContentRequest{Digest: desc.Digest.String()})
	if err != nil {
		return nil, native(err)
	}
	var buf bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, native(err)
		}
		if buf.Len()+len(part.Data) > maxDocument {
			return nil, fmt.Errorf("%s is more than a document may have", desc.Digest)
		}
		buf.Write(part.Data)
	}
	d.have[desc.Digest] = buf.Bytes()
	return buf.Bytes(), nil
}

// ReaderAt implements content.Provider.
func (d *documents) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	data, err := d.read(ctx, desc)
	if err != nil {
		return nil, err
	}
	return document{bytes.NewReader(data)}, nil
}

type document struct{ *bytes.Reader }

func (document) Close() error { return nil }

// baseName is an image's name without tag and digest.
func baseName(full string) string {
	ref, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return full
	}
	return reference.TrimNamed(ref).String()
}
