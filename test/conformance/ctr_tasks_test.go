package conformance

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// A client that attaches later reads, writes, and ends with the exit code.
func TestCtrTasksAttach(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("attached")
		fifos := t.TempDir()
		d.MustCtr(t, "run", "--detach", "--fifo-dir", fifos, harness.Image, id, "sh", "-c", "read -r line; echo got $line; read -r line; exit 3")
		p := d.Spawn(t, d.Programs.Ctr, "tasks", "attach", id)
		p.Type(t, "a line\n")
		p.AwaitOutput(t, "got a line")
		p.Type(t, "the end\n")
		if r := p.Wait(t); r.Code != 3 {
			t.Errorf("attach: %s, want exit code 3", r)
		}
		if status := d.TaskStatus(t, id); status != "" {
			t.Errorf("the task is %s, attach deletes it at its end", status)
		}
		d.MustCtr(t, "containers", "rm", id)
		if r := d.Ctr(t, "tasks", "attach", id); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("attach to what is not there: %s", r)
		}
	})
}

// A checkpoint without the processes needs no criu: it has the image, and the
// layer that was written.
func TestCtrContainersCheckpoint(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const ref = "berth.test/checkpoint:1"
		id := d.ID("saved")
		d.MustCtr(t, "run", "--detach", "--null-io", harness.Image, id, "sh", "-c", "echo kept >/kept; touch /ready; sleep 1000")
		harness.Await(t, time.Minute, "the file is written", func() bool {
			return d.Ctr(t, "tasks", "exec", "--exec-id", d.ID("look"), id, "test", "-e", "/ready").Code == 0
		})
		d.MustCtr(t, "containers", "checkpoint", "--rw", "--image", id, ref)
		if status := d.TaskStatus(t, id); status != "RUNNING" {
			t.Errorf("after the checkpoint the task is %s", status)
		}
		if layer := writtenLayer(t, d, ref); !strings.Contains(layer, "kept\n") {
			t.Errorf("the layer in the checkpoint has %d bytes and not the file", len(layer))
		}
		// The container's record is saved with its processes only.
		if r := d.Ctr(t, "containers", "restore", "--rw", d.ID("restored"), ref); r.Code == 0 || !strings.Contains(r.Stderr, "media type not found") {
			t.Errorf("restore without a record: %s", r)
		}
		if r := d.Ctr(t, "containers", "restore", d.ID("none"), "berth.test/none:1"); r.Code == 0 {
			t.Errorf("restore from an image that is not there: %s", r)
		}
		d.Ctr(t, "tasks", "delete", "--force", id) // its exit code may be the task's
		d.MustCtr(t, "containers", "rm", id)
		d.MustCtr(t, "images", "rm", "--sync", ref)
	})
}

// writtenLayer is the layer of a checkpoint, without its compression.
func writtenLayer(t *testing.T, d *harness.Daemon, ref string) string {
	t.Helper()
	var index ocispec.Index
	if err := json.Unmarshal([]byte(d.MustCtr(t, "content", "get", imageDigest(t, d, ref))), &index); err != nil {
		t.Fatal(err)
	}
	for _, m := range index.Manifests {
		if m.MediaType != ocispec.MediaTypeImageLayerGzip {
			continue
		}
		r, err := gzip.NewReader(strings.NewReader(d.MustCtr(t, "content", "get", m.Digest.String())))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	t.Fatalf("no layer in %+v", index)
	return ""
}

// Where criu fails, the container goes on and no image is made. criu itself is
// tested in the emulated machine.
func TestCtrCheckpointRefused(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const ref = "berth.test/live:1"
		// Whatever criu is on the machine: it is this one that runc finds.
		if err := os.WriteFile(filepath.Join(d.Dir, "bin", "criu"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		id := d.ID("live")
		d.MustCtr(t, "run", "--detach", "--null-io", harness.Image, id, "sleep", "1000")
		dir := t.TempDir()
		for _, args := range [][]string{
			{"tasks", "checkpoint", "--image-path", filepath.Join(dir, "image"), "--work-path", dir, id},
			{"tasks", "checkpoint", d.ID("none")},
			{"containers", "checkpoint", "--task", id, ref},
			{"containers", "checkpoint", "--task", d.ID("none"), ref},
		} {
			if r := d.Ctr(t, args...); r.Code == 0 {
				t.Errorf("%s, want an error", r)
			}
		}
		if status := d.TaskStatus(t, id); status != "RUNNING" {
			t.Errorf("after the refusals the task is %s", status)
		}
		d.MustCtr(t, "tasks", "exec", "--exec-id", d.ID("goes-on"), id, "true")
		if out := d.MustCtr(t, "images", "ls", "-q", "name=="+ref); out != "" {
			t.Errorf("an image of the checkpoint that failed: %s", out)
		}
		d.Ctr(t, "tasks", "delete", "--force", id) // its exit code may be the task's
		d.MustCtr(t, "containers", "rm", id)
	})
}

// ctr shim talks to the shim behind the daemon's back, at the address in the
// bundle.
func TestCtrShim(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("direct")
		d.MustCtr(t, "run", "--detach", "--null-io", harness.Image, id, "sleep", "1000")
		shim := func(args ...string) harness.Result {
			return d.Ctr(t, append([]string{"shim", "--shim-address", shimAddress(t, d, id)}, args...)...)
		}
		var state struct {
			ID  string `json:"id"`
			PID int    `json:"pid"`
		}
		r := shim("state", "--task-id", id)
		if err := json.Unmarshal([]byte(r.Stdout), &state); err != nil || state.ID != id || state.PID != d.TaskPID(t, id) {
			t.Errorf("state: %s, %v", r, err)
		}
		for _, args := range [][]string{
			{"state", "--task-id", d.ID("none")},
			{"start", id},
			{"start", d.ID("none")},
			{"delete", id},
			{"delete", d.ID("none")},
			{"exec", "--spec", "/dev/null", d.ID("none")},
			{"pprof", "block"},
			{"pprof", "goroutines"},
			{"pprof", "heap"},
			{"pprof", "profile", "--seconds", "1s"},
			{"pprof", "threadcreate"},
			{"pprof", "trace", "--seconds", "1s"},
		} {
			if r := shim(args...); r.Code == 0 {
				t.Errorf("%s, want an error", r)
			}
		}
		// A shim that has containers stays.
		shim("shutdown")
		if status := d.TaskStatus(t, id); status != "RUNNING" {
			t.Errorf("after shutdown the task is %s", status)
		}
		d.MustCtr(t, "tasks", "exec", "--exec-id", d.ID("after"), id, "true")
		end := d.WaitTask(t, id)
		d.MustCtr(t, "tasks", "kill", "--signal", "SIGKILL", id)
		if code := end(); code != 137 {
			t.Errorf("exit code %d, want 137", code)
		}
		if r := shim("delete", id); r.Code != 0 || !strings.Contains(r.Stdout, "137") {
			t.Errorf("delete of a task that has ended: %s", r)
		}
		// The daemon has not heard of it: it takes away what it has.
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), d.Namespace), time.Minute)
		defer cancel()
		if _, err := d.Client(t).TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id}); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			t.Errorf("delete by the daemon: %v", err)
		}
		d.MustCtr(t, "containers", "rm", id)
	})
}

// shimAddress is the socket that the bundle of a task names.
func shimAddress(t *testing.T, d *harness.Daemon, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(d.State, "io.containerd.runtime.v2.task", d.Namespace, id, "bootstrap.json"))
	if err != nil {
		t.Fatal(err)
	}
	var params struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal(data, &params); err != nil {
		t.Fatal(err)
	}
	return params.Address
}

// An object of the store goes to the registry alone.
func TestCtrPushObject(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		name := testimage.NewRegistry(t).Host + "/object:1"
		var manifest struct {
			Config struct{ Digest, MediaType string }
			Layers []struct{ Digest, MediaType string }
		}
		dgst := imageDigest(t, d, harness.Image)
		if err := json.Unmarshal([]byte(d.MustCtr(t, "content", "get", dgst)), &manifest); err != nil {
			t.Fatal(err)
		}
		for _, o := range append(manifest.Layers, manifest.Config) {
			d.MustCtr(t, "content", "push-object", "--plain-http", name, o.Digest, o.MediaType)
		}
		d.MustCtr(t, "content", "push-object", "--plain-http", name, dgst, "application/vnd.oci.image.manifest.v1+json")
		d.MustCtr(t, "images", "pull", "--plain-http", name)
		if got := imageDigest(t, d, name); got != dgst {
			t.Errorf("the image that was pushed in parts has the digest %s, want %s", got, dgst)
		}
		none := digest.FromString("none").String()
		if r := d.Ctr(t, "content", "push-object", "--plain-http", name, none, "text/plain"); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("push of what is not in the store: %s", r)
		}
		d.MustCtr(t, "images", "rm", "--sync", name)
	})
}

// The programs of an image, and nothing else of it, are put into a directory.
func TestCtrInstall(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		dir := t.TempDir()
		install := func(args ...string) harness.Result {
			return d.Ctr(t, append([]string{"install", "--path", dir}, args...)...)
		}
		if r := install(harness.Image); r.Code != 0 {
			t.Fatal(r)
		}
		if _, err := os.Stat(filepath.Join(dir, "bin", "busybox")); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "etc")); err == nil {
			t.Error("more than programs was installed")
		}
		if r := install(harness.Image); r.Code == 0 || !strings.Contains(r.Stderr, "cannot replace") {
			t.Errorf("a second time: %s", r)
		}
		if r := install("--replace", harness.Image); r.Code != 0 {
			t.Error(r)
		}
	})
}

// The layers of an image as erofs files. mkfs.erofs is a program that keeps the
// layer as it comes: what reaches it is what the image says.
func TestCtrErofsCache(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const script = "#!/bin/sh\nfor last; do :; done\nexec cat >\"$last\"\n"
		if err := os.WriteFile(filepath.Join(d.Dir, "bin", "mkfs.erofs"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		// Nothing refers to the layer without its compression: a collection may take it
		// before it is read.
		harness.Await(t, time.Minute, "the cache is built", func() bool {
			r := d.Ctr(t, "images", "build-erofs-cache", harness.Image, dir)
			if r.Code != 0 && !strings.Contains(r.Stderr, "not found") {
				t.Fatal(r)
			}
			return r.Code == 0
		})
		found, err := filepath.Glob(filepath.Join(dir, "sha256", "*", "*.erofs"))
		if err != nil || len(found) != 1 {
			t.Fatalf("in the cache: %v, %v", found, err)
		}
		data, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if name := digest.FromBytes(data).Encoded() + ".erofs"; filepath.Base(found[0]) != name {
			t.Errorf("the layer is in %s, want %s", found[0], name)
		}
		if r := d.Ctr(t, "images", "build-erofs-cache", "berth.test/none:1", dir); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("the cache of an image that is not there: %s", r)
		}
	})
}

// The profiles of the daemon, at the socket of its configuration.
func TestCtrPprof(t *testing.T) {
	t.Parallel()
	for kind, toml := range map[harness.Kind]string{
		harness.Stock: "[plugins.\"io.containerd.server.v1.debug\"]\naddress = %q\n",
		harness.Berth: "[debug]\naddress = %q\n",
	} {
		t.Run(string(kind), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "pprof") // short: a socket is in it
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			socket := filepath.Join(dir, "debug.sock")
			d := harness.Start(t, harness.Config{Kind: kind, NoImage: true, Toml: strings.Replace(toml, "%q", `"`+socket+`"`, 1)})
			for _, profile := range [][]string{
				{"block"}, {"goroutines"}, {"heap"}, {"threadcreate"}, {"profile", "--seconds", "1s"}, {"trace", "--seconds", "1s"},
			} {
				if out := d.MustCtr(t, append([]string{"pprof", "--debug-socket", socket}, profile...)...); len(out) < 16 {
					t.Errorf("%v: %q", profile, out)
				}
			}
		})
	}
}
