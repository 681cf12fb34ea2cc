// Package testimage makes small images for tests: Debian's static busybox, a
// few users, and what a test adds. It writes them as OCI archives and serves
// them from a registry on loopback. It is for tests only.
package testimage

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Busybox is the static binary that images are made from.
const Busybox = "/bin/busybox"

// applets are the commands that an image has as links to busybox.
var applets = strings.Fields("awk cat chmod chown cp cut date dd df echo env expr false find free grep head hostname id ip " +
	"kill ls mkdir mount mv nc nproc od printenv printf ps pwd readlink rm sed seq sh sha256sum sleep sort stat stty sync " +
	"tail tee test touch tr true tty ulimit umount uname wc which xargs yes")

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
	group  = "root:x:0:\napp:x:1000:\nstaff:x:2000:app\n"
)

// Config says what an image holds. The zero value is an image whose command is
// sh.
type Config struct {
	// Cmd is the default command; empty means /bin/sh.
	Cmd []string
	// Env is added to PATH.
	Env []string
	// User, WorkingDir and Labels go to the image's configuration.
	User, WorkingDir string
	Labels           map[string]string
	// Layers are added on top of the first one, in that order.
	Layers [][]File
}

// File is an entry of a layer.
type File struct {
	// Name is the path without a leading slash; a name that ends with a slash
	// is a directory. A last element that begins with ".wh." removes what it
	// names from the layers below.
	Name string
	// Data is the content of a regular file.
	Data []byte
	// Link makes the entry a symbolic link.
	Link string
	// Mode is the permission bits; 0 means 0755.
	Mode     int64
	UID, GID int
}

// New makes an image for this machine's platform.
func New(cfg Config) (v1.Image, error) {
	base, err := baseLayer()
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{base}
	for _, files := range cfg.Layers {
		l, err := NewLayer(files)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, fmt.Errorf("add layers: %w", err)
	}
	if len(cfg.Cmd) == 0 {
		cfg.Cmd = []string{"/bin/sh"}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{
		Cmd: cfg.Cmd, User: cfg.User, WorkingDir: cfg.WorkingDir, Labels: cfg.Labels,
		Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, cfg.Env...),
	}
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		return nil, fmt.Errorf("set image configuration: %w", err)
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON), nil
}

func baseLayer() (v1.Layer, error) {
	busybox, err := os.ReadFile(Busybox)
	if err != nil {
		return nil, fmt.Errorf("read busybox (install the package busybox-static): %w", err)
	}
	files := []File{
		{Name: "bin/"},
		{Name: "etc/"},
		{Name: "dev/"},
		{Name: "proc/"},
		{Name: "sys/"},
		{Name: "run/"},
		{Name: "var/"},
		{Name: "tmp/", Mode: 0o1777},
		{Name: "root/", Mode: 0o700},
		{Name: "home/"},
		{Name: "home/app/", Mode: 0o700, UID: 1000, GID: 1000},
		{Name: "etc/passwd", Mode: 0o644, Data: []byte(passwd)},
		{Name: "etc/group", Mode: 0o644, Data: []byte(group)},
		{Name: "bin/busybox", Data: busybox},
	}
	for _, a := range applets {
		files = append(files, File{Name: "bin/" + a, Link: "busybox"})
	}
	return NewLayer(files)
}

// NewLayer makes a gzip layer. The same files give the same digest.
func NewLayer(files []File) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Size: int64(len(f.Data))}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write layer entry %s: %w", f.Name, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("write layer entry %s: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}
