package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

const limit = time.Minute

var program struct {
	build func() (string, error)
}

// TestMain gives the tests the program as users have it: one file, with no shim
// beside it.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "bb-program")
	if err != nil {
		log.Fatal(err)
	}
	program.build = sync.OnceValues(func() (string, error) {
		path := filepath.Join(dir, "berth-buildkitd")
		cmd := exec.Command("go", "build", "-o", path, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("build berth-buildkitd: %w\n%s", err, out)
		}
		return path, nil
	})
	code := m.Run()
	_ = os.RemoveAll(dir) // the temporary directory's owner removes what stays
	os.Exit(code)
}

// builder is berth-buildkitd as a process, and stock buildctl.
type builder struct {
	dir, namespace, address string
	program, client         string
	args                    []string
	cmd                     *exec.Cmd
	ended                   chan error
	log                     *os.File
}

// newBuilder starts the program in directories of its own.
func newBuilder(t *testing.T, args ...string) *builder {
	t.Helper()
	path, err := program.build()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "bb-")
	if err != nil {
		t.Fatal(err)
	}
	_, client := harness.BuildKit(t)
	b := &builder{dir: dir, namespace: filepath.Base(dir), address: "unix://" + filepath.Join(dir, "b.sock"), program: path, client: client, args: args}
	if b.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		harness.CheckLeft(t, dir, b.namespace)
		b.log.Close()
		if err := os.RemoveAll(dir); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	b.start(t)
	return b
}

func (b *builder) start(t *testing.T) {
	t.Helper()
	b.cmd = exec.Command(b.program, append([]string{
		"--addr", b.address, "--net", "host", "--namespace", b.namespace,
		"--root", filepath.Join(b.dir, "root"), "--state", filepath.Join(b.dir, "run"),
	}, b.args...)...)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	// Nothing of the program is found where the tests' programs are.
	b.cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "BERTH_SHIM_LINGER=200ms")
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.ended = make(chan error, 1)
	go func(cmd *exec.Cmd) { b.ended <- cmd.Wait() }(b.cmd) // ends with the process
	t.Cleanup(func() { b.end(t, syscall.SIGTERM) })
	harness.Await(t, limit, "berth-buildkitd serves", func() bool {
		select {
		case err := <-b.ended:
			t.Fatalf("it ended: %v\n%s", err, b.logText())
		default:
		}
		_, err := b.ctl(t.Context(), "debug", "workers")
		return err == nil
	})
}

// end ends the program, once; after SIGTERM its exit code is 0.
func (b *builder) end(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Signal(sig) // it may have ended
	b.cmd = nil
	select {
	case err := <-b.ended:
		if err != nil && sig != syscall.SIGKILL {
			t.Errorf("%v\n%s", err, b.logText())
		}
	case <-time.After(limit):
		t.Errorf("it does not end\n%s", b.logText())
	}
}

func (b *builder) logText() string {
	text, _ := os.ReadFile(b.log.Name()) // says less then
	return string(text)
}

func (b *builder) ctl(ctx context.Context, args ...string) (string, error) {
	out, err := b.command(ctx, args...).CombinedOutput()
	return string(out), err
}

func (b *builder) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, b.client, append([]string{"--addr", b.address}, args...)...)
}

// must runs buildctl, which has to succeed.
func (b *builder) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.ctl(t.Context(), args...)
	if err != nil {
		t.Fatalf("buildctl %v: %v\n%s\nlog: %s", args, err, out, b.logText())
	}
	return out
}

// project is a directory with a Dockerfile, whose IMAGE is one in a registry, and
// what makes buildctl build it.
func project(t *testing.T, dockerfile string, files map[string]string) []string {
	t.Helper()
	image, err := testimage.New(testimage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dir, all := t.TempDir(), map[string]string{
		"Dockerfile": strings.ReplaceAll(dockerfile, "IMAGE", testimage.NewRegistry(t).Push("busybox:1", image)),
	}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir}
}

// dockerfile has ten steps; each leaves in a file what it found.
const dockerfile = `FROM IMAGE AS base
COPY hello.txt /in/hello.txt
RUN cat /in/hello.txt > /in/copied
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /in/secret; ls /run/secrets
RUN --mount=type=tmpfs,target=/scratch grep -q ' /scratch tmpfs ' /proc/mounts && echo yes > /in/tmpfs
RUN --mount=type=cache,target=/cache echo line >> /cache/f && wc -l < /cache/f > /in/cache
RUN --mount=type=bind,source=hello.txt,target=/bound/it cat /bound/it > /in/bound
RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo yes > /in/ssh
RUN --network=none ls /sys/class/net > /in/none
USER app
RUN id -u > /tmp/uid && if touch /in/forbidden 2>/dev/null; then exit 1; fi

FROM IMAGE AS one
RUN echo one > /one
FROM IMAGE AS two
RUN echo two > /two

FROM IMAGE
COPY --from=base /in /tmp/uid /out/
COPY --from=one /one /out/
COPY --from=two /two /out/
`

// Stock buildctl builds on the program, which is the daemon, the engine and the
// shim in one file; and on the program before a daemon.
func TestBuildctl(t *testing.T) {
	for name, args := range map[string]func(t *testing.T) []string{
		"engine": func(*testing.T) []string { return nil },
		"berthd": func(t *testing.T) []string {
			d := harness.Start(t, harness.Config{NoImage: true, NoLeakCheck: true})
			return []string{"--containerd", d.Address}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBuilder(t, args(t)...)
			testTenSteps(t, b)
			testFailing(t, b)
			testClientKilled(t, b)
			if name == "engine" {
				testAtOnce(t, b)
			}
			testPrune(t, b)
		})
	}
}

func testTenSteps(t *testing.T, b *builder) {
	dir := t.TempDir()
	for name, text := range map[string]string{"token": "s3cret", "key": privateKey(t)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := append(project(t, dockerfile, map[string]string{"hello.txt": "hello build\n"}),
		"--secret", "id=token,src="+filepath.Join(dir, "token"), "--ssh", "default="+filepath.Join(dir, "key"))
	args = args[:len(args):len(args)]
	out := filepath.Join(dir, "out")
	b.must(t, append(args, "--output", "type=local,dest="+out)...)
	for name, want := range map[string]string{
		"hello.txt": "hello build", "copied": "hello build", "secret": "6", "tmpfs": "yes", "cache": "1", "bound": "hello build",
		"ssh": "yes", "none": "lo", "uid": "1000", "one": "one", "two": "two",
	} {
		got, err := os.ReadFile(filepath.Join(out, "out", name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	for _, path := range []string{"run/secrets/token", "scratch", "cache/f", "bound"} {
		if st, err := os.Stat(filepath.Join(out, path)); err == nil && (!st.IsDir() || path == "scratch") {
			t.Errorf("/%s of a mount is in the result", path)
		}
	}

	// Again, from the cache: as an OCI archive, and into the image store, which
	// the next build takes its base from.
	archive := filepath.Join(dir, "out.tar")
	text := b.must(t, append(args, "--output", "type=oci,dest="+archive)...)
	if n := strings.Count(text, " CACHED\n"); n < 10 {
		t.Errorf("%d steps of the second build were cached, want 10 or more:\n%s", n, text)
	}
	list, err := exec.CommandContext(t.Context(), "tar", "tf", archive).Output()
	if err != nil || !bytes.Contains(list, []byte("index.json")) || !bytes.Contains(list, []byte("oci-layout")) {
		t.Errorf("the archive: %v\n%s", err, list)
	}
	const name = "berth.test/built:1"
	b.must(t, append(args, "--output", "type=image,unpack=true,name="+name)...)
	args = append(project(t, "FROM "+name+"\nRUN test $(cat /out/one) = one\n", nil), "--opt", "image-resolve-mode=local")
	b.must(t, args...)
}

func privateKey(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func testFailing(t *testing.T, b *builder) {
	out, err := b.ctl(t.Context(), project(t, "FROM IMAGE\nRUN echo before; exit 42\nRUN echo never\n", nil)...)
	if err == nil || !strings.Contains(out, "exit code: 42") || !strings.Contains(out, "before") {
		t.Errorf("a step that fails: %v\n%s", err, out)
	}
}

// A build goes with its client, however that ends.
func testClientKilled(t *testing.T, b *builder) {
	n := fmt.Sprint(1_000_000 + rand.N(1_000_000_000))
	cmd := b.command(t.Context(), project(t, "FROM IMAGE\nRUN sleep "+n+" & sleep "+n+"\n", nil)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Await(t, limit, "the step runs", func() bool { return sleeping(n) == 2 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	harness.Await(t, limit, "the end of the step", func() bool { return sleeping(n) == 0 })
}

// sleeping counts the processes "sleep n".
func sleeping(n string) (count int) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, p := range paths {
		if b, err := os.ReadFile(p); err == nil && bytes.Equal(b, []byte("sleep\x00"+n+"\x00")) {
			count++
		}
	}
	return count
}

// Fifty steps that can run at once.
func testAtOnce(t *testing.T, b *builder) {
	var stages, copies strings.Builder
	for i := range 50 {
		fmt.Fprintf(&stages, "FROM IMAGE AS s%d\nRUN echo %d > /n%d\n", i, i, i)
		fmt.Fprintf(&copies, "COPY --from=s%d /n%d /\n", i, i)
	}
	out := t.TempDir()
	b.must(t, append(project(t, stages.String()+"FROM scratch\n"+copies.String(), nil), "--output", "type=local,dest="+out)...)
	for i := range 50 {
		got, err := os.ReadFile(filepath.Join(out, fmt.Sprintf("n%d", i)))
		if err != nil || string(got) != fmt.Sprintf("%d\n", i) {
			t.Errorf("step %d: %q, %v", i, got, err)
		}
	}
}

func testPrune(t *testing.T, b *builder) {
	if out := b.must(t, "du"); !strings.Contains(out, "Total:") || strings.Contains(out, "Total:\t\t0B") || strings.Count(out, "\n") < 20 {
		t.Errorf("du after builds: %s", out)
	}
	var out string
	empty := harness.Poll(limit, func() bool { // what a build used is let go of after it
		b.must(t, "prune", "--all")
		out = b.must(t, "du")
		return strings.Contains(out, "0B") && strings.Count(out, "\n") <= 5
	})
	if !empty {
		t.Errorf("du after prune --all: %s", out)
	}
}

// Killed in the middle of a step, the program leaves nothing that its next run
// does not remove, and builds on.
func TestKilled(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	n := fmt.Sprint(1_000_000 + rand.N(1_000_000_000))
	args := append(project(t, "FROM IMAGE\nRUN echo first\nRUN --mount=type=secret,id=token --mount=type=tmpfs,target=/t sleep "+n+"\n",
		map[string]string{"token": "s3cret"}), "--secret", "id=token,env=HOME")
	cmd := b.command(t.Context(), args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Await(t, limit, "the step runs", func() bool { return sleeping(n) == 1 })
	b.end(t, syscall.SIGKILL)
	if err := cmd.Wait(); err == nil {
		t.Error("the build of a daemon that was killed succeeds")
	}
	b.start(t)
	if left := sleeping(n); left != 0 {
		t.Errorf("%d processes of the step live", left)
	}
	for _, dir := range []string{"root/tmp", "run/steps/rootfs", "run/steps/steps"} {
		if left, _ := filepath.Glob(filepath.Join(b.dir, dir, "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(b.dir+"/")) {
		t.Errorf("mounts are left (%v)", err)
	}
	if out := b.must(t, project(t, "FROM IMAGE\nRUN echo again\n", nil)...); !strings.Contains(out, "again") {
		t.Error(out)
	}
	other := exec.CommandContext(t.Context(), b.program, "--root", filepath.Join(b.dir, "root"), "--state", filepath.Join(b.dir, "run2"))
	if out, err := other.CombinedOutput(); err == nil || !strings.Contains(string(out), "another berth-buildkitd uses it") {
		t.Errorf("a second one on the same root: %v, %s", err, out)
	}
}

func TestSettingsRefused(t *testing.T) {
	t.Setenv("TMPDIR", os.TempDir()) // the program sets it
	for _, args := range [][]string{
		{"--config", "/nonexistent"}, {"--addr", "tcp://0.0.0.0:1"}, {"--step-memory", "much"}, {"--group", "no such group"},
	} {
		dir := t.TempDir()
		args = append([]string{"berth-buildkitd", "--root", dir, "--state", dir + "/s", "--shim", "/bin/false"}, args...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := app().Run(ctx, args); err == nil {
			t.Errorf("%q is taken", args)
		}
		cancel()
	}
}
