package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// dockerfile has ten steps; each RUN shows by a file what it found.
const dockerfile = `FROM ` + harness.Image + ` AS base
COPY hello.txt /in/hello.txt
RUN cat /in/hello.txt > /in/copied
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /in/secret; ls /run/secrets
RUN --mount=type=tmpfs,target=/scratch grep -q ' /scratch tmpfs ' /proc/mounts && echo yes > /in/tmpfs
RUN --mount=type=cache,target=/cache echo line >> /cache/f && wc -l < /cache/f > /in/cache
RUN --network=none ls /sys/class/net > /in/none
RUN --network=host ls /sys/class/net > /in/host && cat /proc/self/mountinfo > /dev/null
USER app
RUN id -u > /tmp/uid && if touch /in/forbidden 2>/dev/null; then exit 1; fi

FROM ` + harness.Image + `
COPY --from=base /in /out
COPY --from=base /tmp/uid /out/uid
CMD ["cat", "/out/copied"]
`

// buildKit is a running buildkitd on the daemon under test.
type buildKit struct {
	d               *harness.Daemon
	process         *harness.Process
	client, address string
	dir             string
}

func startBuildKit(t *testing.T, d *harness.Daemon) *buildKit {
	t.Helper()
	daemon, client := harness.BuildKit(t)
	b := &buildKit{d: d, client: client, dir: filepath.Join(d.Dir, "opt")}
	if err := os.MkdirAll(b.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	b.address = "unix://" + filepath.Join(b.dir, "bk.sock")
	b.process = d.Spawn(t, daemon, "--root", filepath.Join(b.dir, "bk"), "--addr", b.address,
		"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr", d.Address,
		"--containerd-worker-namespace", d.Namespace, "--containerd-worker-net", "host",
		"--allow-insecure-entitlement", "network.host")
	harness.Await(t, time.Minute, "buildkitd serves", func() bool { return b.ctl(t, "debug", "workers").Code == 0 })
	return b
}

func (b *buildKit) ctl(t *testing.T, args ...string) harness.Result {
	t.Helper()
	return b.d.Exec(t, "", append([]string{b.client, "--addr", b.address}, args...)...)
}

// stop prunes what buildkitd keeps and ends it. The history holds content in a
// namespace of its own; the lease of a step that failed stays with buildkitd, on
// stock containerd too.
func (b *buildKit) stop(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"prune-histories"}, {"prune", "--all"}} {
		if r := b.ctl(t, args...); r.Code != 0 {
			t.Error(r)
		}
	}
	b.process.Signal(t, syscall.SIGTERM)
	b.process.Wait(t) // its exit code is 1 after a signal
	for _, lease := range strings.Fields(b.d.MustCtr(t, "leases", "ls", "-q")) {
		b.d.MustCtr(t, "leases", "rm", "--sync", lease)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		t.Error(err)
	}
}

func buildArgs(context string, more ...string) []string {
	return append([]string{
		"build", "--progress", "plain", "--frontend", "dockerfile.v0", "--opt", "image-resolve-mode=local",
		"--local", "context=" + context, "--local", "dockerfile=" + context,
	}, more...)
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Stock buildkitd builds on the daemon's content, snapshots, diffs, leases,
// containers and tasks.
func TestBuildKit(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		b := startBuildKit(t, d)
		defer b.stop(t)
		dir := t.TempDir()
		writeFiles(t, dir, map[string]string{"Dockerfile": dockerfile, "hello.txt": "hello build\n", "token": "s3cret"})
		const name, again = "berth.test/built:1", "berth.test/again:1"
		args := buildArgs(dir, "--secret", "id=token,src="+filepath.Join(dir, "token"), "--allow", "network.host")
		image := append(args[:len(args):len(args)], "--output", "type=image,name="+name+",unpack=true")
		if r := b.ctl(t, image...); r.Code != 0 {
			t.Fatal(r)
		}

		// What the steps found, in a container of the image that was built.
		show := "cd /out; for f in copied secret tmpfs cache none uid; do echo $f $(cat $f); done; grep -c . host; ls /run/secrets /cache 2>&1 | wc -l; cat forbidden 2>&1 | wc -l"
		r := d.CtrRun(t, nil, name, d.ID("built"), "sh", "-c", show)
		want := "copied hello build\nsecret 6\ntmpfs yes\ncache 1\nnone lo\nuid 1000\n"
		if !strings.HasPrefix(r.Stdout, want) {
			t.Errorf("in the image: %s\nwant %q", r, want)
		}
		if r := d.CtrRun(t, nil, name, d.ID("wins"), "cat", "/out/hello.txt"); r.Stdout != "hello build\n" {
			t.Errorf("copied file: %s", r)
		}

		// Again: all from the cache, and exported as an OCI archive.
		archive := filepath.Join(dir, "out.tar")
		r = b.ctl(t, append(args, "--output", "type=oci,name="+again+",dest="+archive)...)
		if n := strings.Count(r.Stderr, " CACHED\n"); r.Code != 0 || n < 10 {
			t.Errorf("%d steps of the second build were cached, want 10 or more: %s", n, r)
		}
		checkArchive(t, archive)
		d.MustCtr(t, "images", "rm", "--sync", name)
		d.MustCtr(t, "images", "import", archive)
		if r := d.CtrRun(t, nil, again, d.ID("again"), "cat", "/out/none"); r.Stdout != "lo\n" {
			t.Errorf("in the imported image: %s", r)
		}
	})
}

// checkArchive looks whether an OCI layout has an index with one image.
func checkArchive(t *testing.T, archive string) {
	t.Helper()
	dir := t.TempDir()
	untar(t, archive, dir)
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(data, &index); err != nil || len(index.Manifests) != 1 {
		t.Errorf("index of the archive is %s, %v", data, err)
	}
}

// A build that is cancelled or fails leaves no task.
func TestBuildKitCancel(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		b := startBuildKit(t, d)
		defer b.stop(t)
		dir := t.TempDir()
		writeFiles(t, dir, map[string]string{"Dockerfile": "FROM " + harness.Image + "\nRUN sleep 1000 & sleep 1001\n"})
		p := d.Spawn(t, append([]string{b.client, "--addr", b.address}, buildArgs(dir)...)...)
		harness.Await(t, time.Minute, "the step runs", func() bool { return strings.Contains(d.MustCtr(t, "tasks", "ls"), "RUNNING") })
		p.Signal(t, syscall.SIGINT)
		if r := p.Wait(t); r.Code == 0 {
			t.Errorf("a cancelled build succeeds: %s", r)
		}
		harness.Await(t, time.Minute, "no task is left", func() bool {
			return d.MustCtr(t, "tasks", "ls", "-q") == "" && d.MustCtr(t, "containers", "ls", "-q") == ""
		})

		writeFiles(t, dir, map[string]string{"Dockerfile": "FROM " + harness.Image + "\nRUN exit 42\n"})
		if r := b.ctl(t, buildArgs(dir)...); r.Code == 0 || !strings.Contains(r.Stderr, "exit code: 42") {
			t.Errorf("a step that fails: %s", r)
		}
	})
}
