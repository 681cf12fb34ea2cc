package harness

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/berthd/berth/internal/testimage"
)

// Image is the name of the test image: busybox, with a user app (1000).
const Image = "berth.test/busybox:1"

// imageArchive makes the archive of the test image, once in a test process.
var imageArchive = sync.OnceValues(func() ([]byte, error) {
	img, err := testimage.New(testimage.Config{})
	if err != nil {
		return nil, err
	}
	blobs, err := testimage.Blobs(img)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := testimage.WriteArchive(&b, Image, blobs); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
})

// ImageTar writes the test image to a file of the test's as an OCI archive.
func ImageTar(tb testing.TB) string {
	tb.Helper()
	archive, err := imageArchive()
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(tb.TempDir(), "image.tar")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		tb.Fatal(err)
	}
	return path
}
