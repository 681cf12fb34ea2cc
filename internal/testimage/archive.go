package testimage

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Blob is one file of an image.
type Blob struct {
	Digest    v1.Hash
	MediaType types.MediaType
	Data      []byte
}

// Blobs lists the files of an image: the layers, the configuration and, last,
// the manifest.
func Blobs(img v1.Image) ([]Blob, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	var blobs []Blob
	for _, l := range layers {
		b, err := layerBlob(l)
		if err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		blobs = append(blobs, b)
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, fmt.Errorf("read digest: %w", err)
	}
	return append(blobs,
		Blob{Digest: m.Config.Digest, MediaType: m.Config.MediaType, Data: config},
		Blob{Digest: digest, MediaType: m.MediaType, Data: manifest},
	), nil
}

func layerBlob(l v1.Layer) (Blob, error) {
	digest, err := l.Digest()
	if err != nil {
		return Blob{}, err
	}
	mediaType, err := l.MediaType()
	if err != nil {
		return Blob{}, err
	}
	r, err := l.Compressed()
	if err != nil {
		return Blob{}, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return Blob{Digest: digest, MediaType: mediaType, Data: data}, err
}

// WriteArchive writes blobs, the last one a manifest, as an OCI archive that
// names the image ref. It does not check the blobs, so that a test can write a
// damaged archive.
func WriteArchive(w io.Writer, ref string, blobs []Blob) error {
	manifest := blobs[len(blobs)-1]
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType:   manifest.MediaType,
			Size:        int64(len(manifest.Data)),
			Digest:      manifest.Digest,
			Annotations: map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref},
		}},
	})
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	t := tar.NewWriter(w)
	put := func(name string, data []byte) {
		if err == nil {
			err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
		}
		if err == nil {
			_, err = t.Write(data)
		}
	}
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	put("index.json", index)
	for _, b := range blobs {
		put("blobs/"+b.Digest.Algorithm+"/"+b.Digest.Hex, b.Data)
	}
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// Archive makes an image and writes it to a file of the test's as an OCI
// archive that names the image ref. It returns the file's path.
func Archive(t testing.TB, ref string, cfg Config) string {
	t.Helper()
	img, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := Blobs(img)
	if err != nil {
		t.Fatal(err)
	}
	return ArchiveOf(t, ref, blobs)
}

// ArchiveOf is Archive for blobs that the test has in hand.
func ArchiveOf(t testing.TB, ref string, blobs []Blob) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteArchive(f, ref, blobs); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}
