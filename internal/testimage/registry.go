package testimage

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Registry is a registry on loopback, without TLS, that ends with its test.
type Registry struct {
	// Host is its address and port.
	Host string

	t testing.TB
}

// NewRegistry starts an empty registry. Each of wrap, if any, puts a handler
// of the test's in front of it.
func NewRegistry(t testing.TB, wrap ...func(http.Handler) http.Handler) *Registry {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	for _, w := range wrap {
		h = w(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return &Registry{Host: strings.TrimPrefix(srv.URL, "http://"), t: t}
}

// Push stores an image under "name:tag" and returns its full reference.
func (r *Registry) Push(name string, img v1.Image) string {
	r.t.Helper()
	blobs, err := Blobs(img)
	if err != nil {
		r.t.Fatal(err)
	}
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		r.t.Fatalf("image %q has no tag", name)
	}
	base := "http://" + r.Host + "/v2/" + repo
	for _, b := range blobs[:len(blobs)-1] {
		r.send(http.MethodPost, base+"/blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.Data)
	}
	manifest := blobs[len(blobs)-1]
	r.send(http.MethodPut, base+"/manifests/"+tag, string(manifest.MediaType), manifest.Data)
	return r.Host + "/" + name
}

func (r *Registry) send(method, url, contentType string, data []byte) {
	r.t.Helper()
	if err := send(method, url, contentType, data); err != nil {
		r.t.Fatal(err)
	}
}

func send(method, url, contentType string, data []byte) error {
	req, err := http.NewRequest(method, url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, body)
	}
	return nil
}
