package executor_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	bk "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/containerdexecutor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/sys/user"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/test/harness"
)

// limit is how long anything in a test may take that is not meant to hang.
const limit = time.Minute

// lab is an executor under test and what it runs on.
type lab struct {
	bk.Executor
	// peer is BuildKit's own executor, which cannot do all that ours can.
	peer      bool
	client    *client.Client
	namespace string
	root      string
}

// each runs a test on BuildKit's own executor over stock containerd, then on
// ours over stock containerd, over berthd, and with the engine in the process.
// Each looks for what is left at its end.
func each(t *testing.T, cfg executor.Config, test func(t *testing.T, l *lab)) {
	t.Parallel()
	t.Run("peer", func(t *testing.T) { test(t, peerLab(t)) })
	ours(t, cfg, test)
}

// ours leaves BuildKit's own executor out.
func ours(t *testing.T, cfg executor.Config, test func(t *testing.T, l *lab)) {
	t.Run("stock", func(t *testing.T) { test(t, daemonLab(t, harness.Stock, cfg)) })
	t.Run("berthd", func(t *testing.T) { test(t, daemonLab(t, harness.Berth, cfg)) })
	t.Run("engine", func(t *testing.T) { test(t, engineLab(t, cfg)) })
}

func peerLab(t testing.TB) *lab {
	d := harness.Start(t, harness.Config{Kind: harness.Stock, NoImage: true})
	c := d.Client(t)
	root := filepath.Join(d.State, "executor")
	if err := os.MkdirAll(root, 0o711); err != nil {
		t.Fatal(err)
	}
	host := network.NewHostProvider()
	x := containerdexecutor.New(containerdexecutor.ExecutorOptions{
		Client: c, Root: root, NetworkProviders: map[pb.NetMode]network.Provider{
			pb.NetMode_UNSET: host, pb.NetMode_HOST: host, pb.NetMode_NONE: network.NewNoneProvider(),
		},
	})
	return &lab{Executor: x, peer: true, client: c, namespace: d.Namespace, root: root}
}

func daemonLab(t testing.TB, kind harness.Kind, cfg executor.Config) *lab {
	d := harness.Start(t, harness.Config{Kind: kind, NoImage: true, Linger: linger(t)})
	cfg.Root, cfg.Namespace = filepath.Join(d.State, "executor"), d.Namespace
	return newLab(t, d.Client(t), cfg)
}

// linger is how long a shim waits for the next step: a test is not to wait for
// it, a benchmark has as much time between its steps as a build may have.
func linger(t testing.TB) time.Duration {
	if _, ok := t.(*testing.B); ok {
		return 5 * time.Second
	}
	return 200 * time.Millisecond
}

func engineLab(t testing.TB, cfg executor.Config) *lab {
	dir, err := os.MkdirTemp("/tmp", "bx-")
	if err != nil {
		t.Fatal(err)
	}
	namespace := "x" + identity.NewID()[:8]
	t.Cleanup(func() {
		harness.CheckLeft(t, dir, namespace)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e, err := engine.Open(t.Context(), engine.Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "run"),
		ShimBinary: harness.Shim(t), Linger: linger(t),
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
	cfg.Root, cfg.Namespace = filepath.Join(dir, "executor"), namespace
	return newLab(t, c, cfg)
}

func newLab(t testing.TB, c *client.Client, cfg executor.Config) *lab {
	x, err := executor.New(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		checkClient(t, c, cfg)
	})
	return &lab{Executor: x, client: c, namespace: cfg.Namespace, root: cfg.Root}
}

// checkClient finds containers, tasks and files of steps.
func checkClient(t testing.TB, c *client.Client, cfg executor.Config) {
	ctx := namespaces.WithNamespace(context.Background(), cfg.Namespace)
	var left []client.Container
	harness.Poll(limit, func() bool { // another executor may still remove records
		list, err := c.Containers(ctx)
		if err != nil {
			t.Error(err)
		}
		left = list
		return len(left) == 0
	})
	for _, c := range left {
		t.Errorf("container %s is left", c.ID())
	}
	for _, dir := range []string{"steps", "fifo", "rootfs"} {
		entries, _ := os.ReadDir(filepath.Join(cfg.Root, dir)) // nothing there, nothing left
		for _, e := range entries {
			t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
}

// source is a directory of this machine that can be mounted.
type source string

func (s source) Mount(context.Context, bool) (bk.MountableRef, error) { return sourceRef(s), nil }

type sourceRef string

func (r sourceRef) IdentityMapping() *user.IdentityMapping { return nil }

func (r sourceRef) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "bind", Source: string(r), Options: []string{"rbind"}}}, func() error { return nil }, nil
}

// rootfs makes a root file system with busybox and a few users.
func rootfs(t testing.TB) string {
	root := harness.Rootfs(t)
	for _, applet := range []string{
		"stat", "mount", "env", "hostname", "stty", "touch", "kill", "dd", "false", "wc", "chmod", "rm", "mkdir", "ln", "ps", "tail",
		"grep", "readlink", "wget",
	} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
	write(t, root, "etc/group", "root:x:0:\napp:x:1000:\nstaff:x:2000:app\n")
	return root
}

func write(t testing.TB, root, name, text string) {
	if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// output collects a stream.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) Close() error { return nil }

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// sh is a step's program.
func sh(script string) bk.Meta {
	return bk.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}}
}

// result of a step or an exec.
type result struct {
	out, err string
	rec      resourcestypes.Recorder
	failed   error
}

func withNamespace(l *lab) context.Context {
	return namespaces.WithNamespace(context.Background(), l.namespace)
}

// run runs a step to its end.
func (l *lab) run(ctx context.Context, root string, meta bk.Meta, mounts ...bk.Mount) result {
	var out, errs output
	ctx = namespaces.WithNamespace(ctx, l.namespace)
	rec, err := l.Run(ctx, "", bk.Mount{Src: source(root)}, mounts, bk.ProcessInfo{Meta: meta, Stdout: &out, Stderr: &errs}, nil)
	return result{out.String(), errs.String(), rec, err}
}

// must runs a step that has to succeed and returns its output without the last
// line feed.
func (l *lab) must(t testing.TB, root string, meta bk.Meta, mounts ...bk.Mount) string {
	t.Helper()
	r := l.run(t.Context(), root, meta, mounts...)
	if r.failed != nil {
		t.Fatalf("%q: %v\nstdout: %s\nstderr: %s", meta.Args, r.failed, r.out, r.err)
	}
	return strings.TrimSuffix(r.out, "\n")
}

// background is a step that runs until the test stops it.
type background struct {
	id    string
	stop  context.CancelCauseFunc
	ended chan struct{}
	err   error // once ended is closed
	out   output
}

// start starts a step in the background and waits until it runs.
func (l *lab) start(t *testing.T, root string, meta bk.Meta) *background {
	t.Helper()
	ctx, cancel := context.WithCancelCause(namespaces.WithNamespace(context.Background(), l.namespace))
	b := &background{id: identity.NewID(), stop: cancel, ended: make(chan struct{})}
	started := make(chan struct{})
	go func() {
		defer close(b.ended)
		_, b.err = l.Run(ctx, b.id, bk.Mount{Src: source(root)}, nil, bk.ProcessInfo{Meta: meta, Stdout: &b.out}, started)
	}()
	t.Cleanup(func() {
		cancel(errors.New("the test has ended"))
		<-b.ended
	})
	select {
	case <-started:
	case <-time.After(limit):
		t.Fatal("the step does not start")
	}
	return b
}

// exec runs a program in a step.
func (l *lab) exec(ctx context.Context, id string, meta bk.Meta, stdin string) result {
	var out, errs output
	p := bk.ProcessInfo{Meta: meta, Stdout: &out, Stderr: &errs}
	if stdin != "" {
		p.Stdin = io.NopCloser(strings.NewReader(stdin))
	}
	err := l.Exec(namespaces.WithNamespace(ctx, l.namespace), id, p)
	return result{out: out.String(), err: errs.String(), failed: err}
}
