package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"

	"github.com/berthd/berth/test/harness"
)

// buildSteps is the number of RUN steps in the build that is timed.
const buildSteps = 10

// BenchmarkBuild times a build of ten steps of `true`, one after the other and
// without an export, on stock buildkitd with its two workers, on stock buildkitd
// above berthd, and on this program with the engine inside: -benchtime 20x.
func BenchmarkBuild(b *testing.B) {
	root := harness.Rootfs(b)
	build := func(name string, c *bkclient.Client) harness.Variant {
		return harness.Variant{Name: name, Do: func() error { return buildOnce(b.Context(), c, root) }}
	}
	harness.Compare(b, "build", []harness.Variant{
		build("stock-containerd", stockBuilder(b, harness.Stock)),
		build("stock-runc", runcBuilder(b)),
		build("stock-on-berthd", stockBuilder(b, harness.Berth)),
		build("berth-buildkitd", ownBuilder(b)),
	})
}

func buildOnce(ctx context.Context, c *bkclient.Client, root string) error {
	files, err := fsutil.NewFS(root)
	if err != nil {
		return err
	}
	state := llb.Scratch().File(llb.Copy(llb.Local("root"), "/", "/"))
	for range buildSteps {
		state = state.Run(llb.Args([]string{"/bin/true"}), llb.IgnoreCache).Root()
	}
	def, err := state.Marshal(ctx)
	if err != nil {
		return err
	}
	_, err = c.Solve(ctx, def, bkclient.SolveOpt{LocalMounts: map[string]fsutil.FS{"root": files}}, nil)
	return err
}

func stockBuilder(b *testing.B, kind harness.Kind) *bkclient.Client {
	// What buildkitd keeps goes with the daemon's directory.
	d := harness.Start(b, harness.Config{Kind: kind, NoImage: true, NoLeakCheck: true, Linger: 5 * time.Second})
	return startBuilder(b, filepath.Join(d.Dir, "opt"), "--oci-worker=false", "--containerd-worker-addr", d.Address,
		"--containerd-worker-namespace", d.Namespace, "--containerd-worker-net", "host")
}

func runcBuilder(b *testing.B) *bkclient.Client {
	return startBuilder(b, shortDir(b), "--containerd-worker=false", "--oci-worker-binary", "runc", "--oci-worker-net", "host")
}

// shortDir is a directory that sockets can be in.
func shortDir(b *testing.B) string {
	dir, err := os.MkdirTemp("/tmp", "bx-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

func startBuilder(b *testing.B, dir string, args ...string) *bkclient.Client {
	daemon, _ := harness.BuildKit(b)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		b.Fatal(err)
	}
	address := "unix://" + filepath.Join(dir, "bk.sock")
	cmd := exec.Command(daemon, append([]string{"--root", filepath.Join(dir, "bk"), "--addr", address}, args...)...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its exit code is 1 after a signal
		if b.Failed() {
			b.Log(log.String())
		}
	})
	return awaitBuilder(b, address)
}

func ownBuilder(b *testing.B) *bkclient.Client {
	dir := shortDir(b)
	address := "unix://" + filepath.Join(dir, "b.sock")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- app().Run(ctx, []string{
			"berth-buildkitd", "--addr", address, "--net", "host", "--shim", harness.Shim(b),
			"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "run"),
		})
	}()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return awaitBuilder(b, address)
}

func awaitBuilder(b *testing.B, address string) *bkclient.Client {
	c, err := bkclient.New(b.Context(), address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	harness.Await(b, time.Minute, "a worker", func() bool {
		w, err := c.ListWorkers(b.Context())
		return err == nil && len(w) == 1
	})
	return c
}
