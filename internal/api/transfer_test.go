package api_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	streamproxy "github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/proxy"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/testimage"
)

const testRef = "example.org/busybox:1"

// layered is an image whose upper layers change and remove what is below.
var layered = testimage.Config{Layers: [][]testimage.File{
	{{Name: "data/"}, {Name: "data/gone", Data: []byte("gone")}, {Name: "data/kept", Data: []byte("old")}},
	{{Name: "data/.wh.gone"}, {Name: "data/kept", Data: []byte("new")}},
	{{Name: "data/top", Data: []byte("top")}, {Name: "etc/.wh.group"}},
}}

// progress collects what a transfer says of itself.
type progress struct {
	mu     sync.Mutex
	events []string
}

func (p *progress) add(e transfer.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e.Event)
}

func (p *progress) has(want string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if strings.Contains(e, want) {
			return true
		}
	}
	return false
}

// importArchive imports a file with the daemon's own code for it, and unpacks
// it for this machine.
func (d *daemon) importArchive(ctx context.Context, path string, opts ...transfer.Opt) error {
	d.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	store := image.NewStore("", image.WithNamedPrefix("example.org/", true), image.WithUnpack(platforms.DefaultSpec(), ""))
	return d.Transfer(ctx, archive.NewImageImportStream(f, ""), store, opts...)
}

// checkRootfs mounts the image's top snapshot and looks at its files: the
// content, or "" for a file that must not be there.
func (d *daemon) checkRootfs(ref, snapshotter string, files map[string]string) {
	d.t.Helper()
	img, err := d.GetImage(d.ctx, ref)
	if err != nil {
		d.t.Fatal(err)
	}
	diffs, err := img.RootFS(d.ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, done, err := d.WithLease(d.ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	defer done(d.ctx)
	mounts, err := d.SnapshotService(snapshotter).View(ctx, "look", identity.ChainID(diffs).String())
	if err != nil {
		d.t.Fatal(err)
	}
	defer d.SnapshotService(snapshotter).Remove(ctx, "look")
	err = mount.WithTempMount(ctx, mounts, func(root string) error {
		for name, want := range files {
			got, err := os.ReadFile(filepath.Join(root, name))
			switch {
			case want == "" && !os.IsNotExist(err):
				d.t.Errorf("%s: %q %v, want no such file", name, got, err)
			case want != "" && (err != nil || string(got) != want):
				d.t.Errorf("%s: %q %v, want %q", name, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

var layeredFiles = map[string]string{
	"data/gone": "", "data/kept": "new", "data/top": "top", "etc/group": "", "data/.wh.gone": "",
}

func TestImportUnpackExportTag(t *testing.T) {
	d := startDaemon(t)
	var p progress
	if err := d.importArchive(d.ctx, testimage.Archive(t, testRef, layered), transfer.WithProgress(p.add)); err != nil {
		t.Fatal(err)
	}
	if !p.has("saved") || !p.has("Completed import") {
		t.Errorf("progress %v, want that the image was saved and the end", p.events)
	}
	if got := d.images(); len(got) != 1 || got[0] != testRef {
		t.Fatalf("images %v, want %s", got, testRef)
	}
	d.checkRootfs(testRef, "overlayfs", layeredFiles)

	const other = "example.org/copy:2"
	if err := d.Transfer(d.ctx, image.NewStore(testRef), image.NewStore(other)); err != nil {
		t.Fatal(err)
	}
	d.removeImage(testRef)
	if got := d.images(); len(got) != 1 || got[0] != other {
		t.Fatalf("images %v, want %s", got, other)
	}

	out := filepath.Join(t.TempDir(), "out.tar")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	// The client's library writes in the background; its Close is the end.
	w := &closing{File: f, closed: make(chan error, 1)}
	export := archive.NewImageExportStream(w, "", archive.WithPlatform(platforms.DefaultSpec()))
	if err := d.Transfer(d.ctx, image.NewStore(other, image.WithExtraReference(other)), export); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-w.closed:
		if err != nil {
			t.Fatal(err)
		}
	case <-d.ctx.Done():
		t.Fatal("the archive is never closed")
	}
	d.removeImage(other)
	d.checkEmpty()

	if err := d.importArchive(d.ctx, out); err != nil {
		t.Fatal(err)
	}
	d.checkRootfs(other, "overlayfs", layeredFiles)
	d.removeImage(other)
	d.checkEmpty()
}

// closing says when a file was closed.
type closing struct {
	*os.File
	closed chan error
}

func (c *closing) Close() error {
	err := c.File.Close()
	c.closed <- err
	return err
}

func TestPullAndPush(t *testing.T) {
	d := startDaemon(t)
	img, err := testimage.New(layered)
	if err != nil {
		t.Fatal(err)
	}
	reg := testimage.NewRegistry(t)
	ref := reg.Push("lib/busybox:1", img)
	for _, snapshotter := range []string{"", "native"} {
		src, err := registry.NewOCIRegistry(d.ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		var p progress
		dst := image.NewStore(ref, image.WithUnpack(platforms.DefaultSpec(), snapshotter))
		if err := d.Transfer(d.ctx, src, dst, transfer.WithProgress(p.add)); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Resolving", "Pulling", "saved", "Completed pull"} {
			if !p.has(want) {
				t.Errorf("progress %v, want %q", p.events, want)
			}
		}
		look := snapshotter
		if look == "" {
			look = "overlayfs"
		}
		d.checkRootfs(ref, look, layeredFiles)
	}

	copied := reg.Host + "/lib/copy:2"
	dst, err := registry.NewOCIRegistry(d.ctx, copied)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Transfer(d.ctx, image.NewStore(ref), dst); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + reg.Host + "/v2/lib/copy/manifests/2")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		t.Errorf("pushed manifest: %s %s", resp.Status, got)
	}
	d.removeImage(ref)
	d.checkEmpty()
}

// The daemon's directory of registry hosts is for clients that bring none.
func TestPullUsesTheDaemonsHosts(t *testing.T) {
	d := startDaemon(t)
	img, err := testimage.New(testimage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	reg := testimage.NewRegistry(t)
	reg.Push("lib/busybox:1", img)
	hosts := filepath.Join(d.hosts, "mirrored.test")
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	config := "server = \"http://" + reg.Host + "\"\n"
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	const ref = "mirrored.test/lib/busybox:1"
	src, err := registry.NewOCIRegistry(d.ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Transfer(d.ctx, src, image.NewStore(ref)); err != nil {
		t.Fatal(err)
	}
	if got := d.images(); len(got) != 1 {
		t.Errorf("images %v, want one", got)
	}
}

func TestPullFailuresLeaveNothing(t *testing.T) {
	img, err := testimage.New(layered)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := testimage.Blobs(img)
	if err != nil {
		t.Fatal(err)
	}
	layer := "/blobs/" + blobs[2].Digest.String()
	other := bytes.Repeat([]byte("x"), len(blobs[2].Data))
	serve := func(data []byte, length int) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, layer) {
					h.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Length", strconv.Itoa(length))
				_, _ = w.Write(data)
			})
		}
	}
	for name, c := range map[string]struct {
		wrap func(http.Handler) http.Handler
		tag  string
		want []string
	}{
		"unknown tag":  {serve(nil, 0), "lib/busybox:2", []string{"lib/busybox:2", "not found"}},
		"wrong digest": {serve(other, len(other)), "lib/busybox:1", []string{blobs[2].Digest.String()}},
		"truncated layer": {
			serve(blobs[2].Data[:len(blobs[2].Data)/2], len(blobs[2].Data)/2), "lib/busybox:1",
			[]string{"lib/busybox:1", "short read"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			reg := testimage.NewRegistry(t, c.wrap)
			reg.Push("lib/busybox:1", img)
			ref := reg.Host + "/" + c.tag
			src, err := registry.NewOCIRegistry(d.ctx, ref)
			if err != nil {
				t.Fatal(err)
			}
			err = d.Transfer(d.ctx, src, image.NewStore(ref, image.WithUnpack(platforms.DefaultSpec(), "")))
			checkError(t, err, c.want...)
			d.checkEmpty()
		})
	}
}

func TestImportFailuresLeaveNothing(t *testing.T) {
	img, err := testimage.New(layered)
	if err != nil {
		t.Fatal(err)
	}
	all, err := testimage.Blobs(img)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(change func(*testimage.Blob), i int) string {
		blobs, err := testimage.Blobs(img)
		if err != nil {
			t.Fatal(err)
		}
		change(&blobs[i])
		return testimage.ArchiveOf(t, testRef, blobs)
	}
	whole, err := os.ReadFile(damage(func(*testimage.Blob) {}, 0))
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "damaged.tar")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		path string
		want []string
	}{
		"not an archive":  {write(bytes.Repeat([]byte("no tar "), 4096)), nil},
		"empty":           {write(nil), nil},
		"ends in a layer": {write(whole[:len(whole)/2]), []string{"EOF"}},
		"wrong digest":    {damage(func(b *testimage.Blob) { b.Data = bytes.Repeat([]byte("x"), len(b.Data)) }, 1), []string{"sha256:"}},
		"truncated layer": {damage(func(b *testimage.Blob) { b.Data = b.Data[:len(b.Data)/2] }, 1), []string{"sha256:"}},
		"huge manifest": {damage(func(b *testimage.Blob) {
			b.Data = append(b.Data, bytes.Repeat([]byte(" "), 17<<20)...)
			b.Digest.Hex = digest.FromBytes(b.Data).Encoded()
		}, len(all)-1), []string{"at most", "sha256:"}},
		"layer is missing": {testimage.ArchiveOf(t, testRef, all[1:]), []string{all[0].Digest.String()}},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			checkError(t, d.importArchive(d.ctx, c.path), c.want...)
			d.checkEmpty()
		})
	}
}

// A client that goes away in the middle of an import leaves nothing.
func TestCancelledImportLeavesNothing(t *testing.T) {
	d := startDaemon(t)
	whole, err := os.ReadFile(testimage.Archive(t, testRef, layered))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(whole[:len(whole)-2048])
		cancel()
		_ = w.CloseWithError(context.Canceled)
	}()
	// Without the lease that containerd's client makes, and could not delete.
	bare := proxy.NewTransferrer(d.conn, streamproxy.NewStreamCreator(d.conn))
	err = bare.Transfer(ctx, archive.NewImageImportStream(r, ""), image.NewStore("", image.WithNamedPrefix("example.org/", true)))
	checkError(t, err)
	eventually(t, "the import's lease to go", func() bool {
		ls, err := d.LeasesService().List(d.ctx)
		return err == nil && len(ls) == 0
	})
	d.checkEmpty()
}

func TestImportOnAFullDisk(t *testing.T) {
	root := t.TempDir()
	// Room for the archive's blobs, not for the files in them as well.
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2560k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Detach: the content store leaves a descriptor of a probe to the Go
		// runtime's garbage collector.
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := startDaemonIn(t, root)
	path := testimage.Archive(t, testRef, testimage.Config{})
	err := d.importArchive(d.ctx, path)
	checkError(t, err, "no space left on device")
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v, want ResourceExhausted", err)
	}

	// A database needs room to forget as well: with some, the same import
	// works, and the removal takes along what the failed one left.
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	if err := d.importArchive(d.ctx, path); err != nil {
		t.Fatal(err)
	}
	d.removeImage(testRef)
	d.checkEmpty()
}

// checkError wants an error of one line that names each of the words.
func checkError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	t.Log(err)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not name %q", err, w)
		}
	}
}
