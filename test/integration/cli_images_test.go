package integration

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// uniqueImage has a layer that no other image has.
func uniqueImage(t *testing.T, size int) testimage.Config {
	t.Helper()
	data := bytes.Repeat([]byte(t.Name()+" "), 1+size/len(t.Name()))
	return testimage.Config{Layers: [][]testimage.File{{{Name: "unique", Data: data}}}}
}

// TestBerthPull fetches an image from a registry and runs it, by hand and as a
// part of run.
func TestBerthPull(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	img, err := testimage.New(uniqueImage(t, 100))
	if err != nil {
		t.Fatal(err)
	}
	ref := testimage.NewRegistry(t).Push("team/app:1", img)
	if out := d.MustBerth(t, "run", "--rm", ref, "echo", "pulled"); out != "pulled\n" {
		t.Errorf("stdout %q", out)
	}
	d.MustBerth(t, "rmi", "--sync", ref)
	r := d.Berth(t, "pull", ref)
	if r.Code != 0 || r.Stdout != ref+"\n" || !strings.Contains(r.Stderr, "saved") {
		t.Error(r)
	}
	if r := d.Berth(t, "pull", "-q", ref); r.Code != 0 || r.Stdout != ref+"\n" || r.Stderr != "" {
		t.Error(r)
	}
	checkOneLine(t, d.Berth(t, "pull", strings.Replace(ref, ":1", ":2", 1)), 1, ":2", "does not have it")
	if out := d.MustBerth(t, "images", "-q"); out != ref+"\n" {
		t.Errorf("images: %q", out)
	}
}

// TestBerthPullDamaged fetches from a registry that lies about a layer: it
// sends other bytes, or stops half way.
func TestBerthPullDamaged(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	img, err := testimage.New(uniqueImage(t, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := layers[len(layers)-1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	var mode atomic.Value
	mode.Store("")
	ref := testimage.NewRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, hash.String()) || mode.Load() == "" {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(&liar{ResponseWriter: w, mode: mode.Load().(string)}, r)
		})
	}).Push("team/app:1", img)
	for _, m := range []string{"wrong digest", "truncated layer"} {
		t.Run(m, func(t *testing.T) {
			mode.Store(m)
			r := d.Berth(t, "run", "--rm", ref, "true")
			checkOneLine(t, r, 125, ref)
			if out := d.MustBerth(t, "images", "-q"); out != "" {
				t.Errorf("images: %q", out)
			}
		})
	}
	mode.Store("")
	d.MustBerth(t, "run", "--rm", ref, "true")
}

// liar changes or cuts a body.
type liar struct {
	http.ResponseWriter
	mode string
	sent int
}

func (l *liar) Write(p []byte) (int, error) {
	first := l.sent == 0
	l.sent += len(p)
	if l.mode == "truncated layer" {
		if !first {
			return 0, io.ErrClosedPipe
		}
		_, err := l.ResponseWriter.Write(p[:len(p)/2])
		if err != nil {
			return 0, err
		}
		return 0, io.ErrClosedPipe
	}
	p = bytes.Clone(p)
	if first {
		p[len(p)/2] ^= 1
	}
	return l.ResponseWriter.Write(p)
}

// TestBerthPullInterrupted ends a pull that hangs: 130, and nothing is left.
func TestBerthPullInterrupted(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	img, err := testimage.New(uniqueImage(t, 100))
	if err != nil {
		t.Fatal(err)
	}
	asked, release := make(chan struct{}, 16), make(chan struct{})
	var hang atomic.Bool
	ref := testimage.NewRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && hang.Load() {
				asked <- struct{}{}
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
			next.ServeHTTP(w, r)
		})
	}).Push("team/app:1", img)
	t.Cleanup(func() { close(release) })
	hang.Store(true)
	p := d.Spawn(t, d.Programs.Berth, "pull", ref)
	select {
	case <-asked:
	case <-time.After(30 * time.Second):
		t.Fatal("the registry is not asked")
	}
	p.Signal(t, syscall.SIGINT)
	if r := p.Wait(t); r.Code != 130 || r.Stdout != "" {
		t.Error(r)
	}
	if out := d.MustBerth(t, "images", "-q"); out != "" {
		t.Errorf("images: %q", out)
	}
}

// TestBerthImages takes an image through its life.
func TestBerthImages(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	archive := harness.ImageTar(t)
	if out := d.MustBerth(t, "import", archive); out != harness.Image+"\n" {
		t.Errorf("import: %q", out)
	}
	in, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	var renamed string
	if r := d.Exec(t, string(in), d.Programs.Berth, "import", "-q", "--tag", "renamed"); !strings.HasSuffix(r.Stdout, "/library/renamed:latest\n") {
		t.Errorf("import --tag: %s", r)
	} else {
		renamed = r.Stdout
	}
	d.MustBerth(t, "tag", harness.Image, "berth.test/other:2")
	want := "berth.test/busybox:1\nberth.test/other:2\n" + renamed
	if out := d.MustBerth(t, "images", "-q"); out != want {
		t.Errorf("images: %q", out)
	}
	var rows []struct {
		Name, Digest string
		Size         int64
		Platforms    []string
	}
	if err := json.Unmarshal([]byte(d.MustBerth(t, "images", "--json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 3 || rows[0].Name != harness.Image || rows[0].Size == 0 || len(rows[0].Platforms) != 1 || rows[0].Digest != rows[2].Digest {
		t.Errorf("images --json: %+v", rows)
	}
	// By the beginning of its digest, as ps and images print it.
	if out := d.MustBerth(t, "run", "--rm", strings.TrimPrefix(rows[0].Digest, "sha256:")[:12], "echo", "by digest"); out != "by digest\n" {
		t.Errorf("by digest: %q", out)
	}
	var detail []struct {
		Name   string
		Config struct{ Config struct{ Cmd []string } }
	}
	if err := json.Unmarshal([]byte(d.MustBerth(t, "inspect", "renamed")), &detail); err != nil || len(detail) != 1 || len(detail[0].Config.Config.Cmd) == 0 {
		t.Errorf("inspect: %+v, %v", detail, err)
	}
	out := filepath.Join(t.TempDir(), "out.tar")
	d.MustBerth(t, "export", "-o", out, "renamed")
	d.MustBerth(t, "image", "rm", "--sync", harness.Image, "berth.test/other:2", "renamed")
	if out := d.MustCtr(t, "content", "ls", "-q"); out != "" {
		t.Errorf("content is left: %q", out)
	}
	if got := d.MustBerth(t, "import", out); got != renamed {
		t.Errorf("import of the export: %q", got)
	}
	if out := d.MustBerth(t, "run", "--rm", "renamed", "echo", "again"); out != "again\n" {
		t.Errorf("stdout %q", out)
	}
}

// TestBerthInfo asks the daemon about itself.
func TestBerthInfo(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	var info struct {
		Address, Root string
		Server        struct{ UUID string }
		Snapshotters  []string
		Failed        []string
	}
	if err := json.Unmarshal([]byte(d.MustBerth(t, "info", "--json")), &info); err != nil {
		t.Fatal(err)
	}
	if info.Address != d.Address || info.Root != d.Root || info.Server.UUID == "" || len(info.Snapshotters) == 0 || len(info.Failed) > 0 {
		t.Errorf("%+v", info)
	}
	var v struct{ Client, Server struct{ Version string } }
	if err := json.Unmarshal([]byte(d.MustBerth(t, "version", "--json")), &v); err != nil || v.Client.Version == "" || v.Server.Version == "" {
		t.Errorf("%+v, %v", v, err)
	}
}
