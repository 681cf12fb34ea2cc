package worker_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/worker/tests"
	"github.com/tonistiigi/fsutil"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/executor/worker"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// BuildKit's own suite runs the program "registry" and pulls busybox from it:
// this test program is that one too.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "registry" {
		log.Fatal(serveRegistry())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bw-registry")
	if err != nil {
		log.Print(err)
		return 1
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "registry"))
	}
	if err == nil {
		err = os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	}
	if err != nil {
		log.Print(err)
		return 1
	}
	defer tests.RunMirror()()
	return m.Run()
}

// lab is a build server with an engine in this process, and a client of it.
type lab struct {
	worker *worker.Worker
	client *bkclient.Client
	image  string // to build from
	dir    string
}

func newLab(t *testing.T, limits executor.Limits) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bw-")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{dir: dir}
	t.Cleanup(func() {
		l.checkLeaks(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e, err := engine.Open(t.Context(), engine.Config{
		Root: filepath.Join(dir, "engine"), State: filepath.Join(dir, "run"),
		ShimBinary: harness.Shim(t), Linger: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c, err := e.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l.worker, err = worker.New(t.Context(), c, worker.Config{
		Root: filepath.Join(dir, "buildkit"), Network: netproviders.Opt{Mode: "host"},
		Executor: executor.Config{Root: filepath.Join(dir, "steps"), Limits: limits, Namespace: filepath.Base(dir)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve puts a server on the worker.
func (l *lab) serve(t *testing.T) {
	t.Helper()
	s, err := worker.NewServer(l.worker, worker.ServerConfig{Entitlements: []string{"network.host", "security.insecure"}})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(l.dir, "bk.sock"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(socket) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	if l.client, err = bkclient.New(t.Context(), "unix://"+socket.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.client.Close() })
	image, err := testimage.New(testimage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.image = testimage.NewRegistry(t).Push("busybox:1", image)
}

// build builds a Dockerfile, whose FROM lines say IMAGE, into a directory.
func (l *lab) build(ctx context.Context, t *testing.T, dockerfile string, more ...func(*bkclient.SolveOpt)) (dir, log string, _ error) {
	t.Helper()
	files, out := t.TempDir(), t.TempDir()
	dockerfile = strings.ReplaceAll(dockerfile, "IMAGE", l.image)
	for name, text := range map[string]string{"Dockerfile": dockerfile, "hello.txt": "hello build\n"} {
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	local, err := fsutil.NewFS(files)
	if err != nil {
		t.Fatal(err)
	}
	opt := bkclient.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{},
		LocalMounts: map[string]fsutil.FS{"context": local, "dockerfile": local},
		Exports:     []bkclient.ExportEntry{{Type: bkclient.ExporterLocal, OutputDir: out}},
		Session:     []session.Attachable{secretsprovider.FromMap(map[string][]byte{"token": []byte("s3cret")})},
	}
	for _, f := range more {
		f(&opt)
	}
	status := make(chan *bkclient.SolveStatus)
	text := make(chan string, 1)
	go func() {
		var b strings.Builder
		for s := range status {
			for _, v := range s.Vertexes {
				if v.Completed != nil {
					fmt.Fprintf(&b, "%s cached=%t %s\n", v.Name, v.Cached, v.Error)
				}
			}
			for _, l := range s.Logs {
				b.Write(l.Data)
			}
		}
		text <- b.String()
	}()
	_, err = l.client.Solve(ctx, nil, opt, status)
	return out, <-text, err
}

// checkLeaks finds what is left of the steps and of the engine.
func (l *lab) checkLeaks(t *testing.T) {
	t.Helper()
	steps, _ := os.ReadDir(filepath.Join(l.dir, "steps", "steps")) // nothing there, nothing left
	for _, s := range steps {
		t.Errorf("left: step %s", s.Name())
	}
	harness.CheckLeft(t, l.dir, filepath.Base(l.dir))
}

// serveRegistry is a registry with busybox, as BuildKit's suite starts it.
func serveRegistry() error {
	image, err := testimage.New(testimage.Config{})
	if err != nil {
		return err
	}
	blobs, err := testimage.Blobs(image)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	log.Printf("listening on %s", l.Addr())
	return http.Serve(l, imageHandler(blobs))
}

// imageHandler serves one image under every name.
func imageHandler(blobs []testimage.Blob) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		manifest := blobs[len(blobs)-1]
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", string(manifest.MediaType))
			w.Header().Set("Docker-Content-Digest", manifest.Digest.String())
			w.Header().Set("Content-Length", fmt.Sprint(len(manifest.Data)))
			_, _ = w.Write(manifest.Data)
			return
		}
		for _, b := range blobs {
			if strings.HasSuffix(r.URL.Path, "/blobs/"+b.Digest.String()) {
				w.Header().Set("Content-Length", fmt.Sprint(len(b.Data)))
				_, _ = w.Write(b.Data)
				return
			}
		}
		if r.URL.Path != "/v2/" {
			http.NotFound(w, r)
		}
	}
}
