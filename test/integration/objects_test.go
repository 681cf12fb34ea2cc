package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/test/harness"
)

func TestCtrImages(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const other = "berth.test/other:2"
		if out := d.MustCtr(t, "images", "ls", "-q"); out != harness.Image+"\n" {
			t.Errorf("images: %q", out)
		}
		d.MustCtr(t, "images", "tag", harness.Image, other)
		if out := d.MustCtr(t, "images", "ls", "-q"); out != harness.Image+"\n"+other+"\n" {
			t.Errorf("images after tag: %q", out)
		}
		d.MustCtr(t, "images", "label", other, "port=north")
		if out := d.MustCtr(t, "images", "ls", "labels.port==north"); !strings.Contains(out, other) || strings.Contains(out, harness.Image) {
			t.Errorf("images with the label: %s", out)
		}
		if out := d.MustCtr(t, "images", "check", "-q"); !strings.Contains(out, harness.Image) {
			t.Errorf("complete images: %q", out)
		}

		archive := filepath.Join(t.TempDir(), "out.tar")
		// Not through the Transfer service: there ctr ends while its own copy
		// into the file still goes on, and the file may lack its end.
		d.MustCtr(t, "images", "export", "--local", archive, other)
		d.MustCtr(t, "images", "rm", "--sync", harness.Image, other)
		if out := d.MustCtr(t, "content", "ls", "-q"); out != "" {
			t.Errorf("content that no image has: %q", out)
		}
		d.MustCtr(t, "images", "import", archive)
		if r := d.CtrRun(t, nil, other, d.ID("run"), "echo", "again"); r.Stdout != "again\n" {
			t.Errorf("from the imported image: %s", r)
		}
		if r := d.Ctr(t, "images", "rm", "berth.test/none:1"); !strings.Contains(r.Stderr, "not found") {
			t.Errorf("remove what is not there: %s", r)
		}
	})
}

func TestCtrImagesMount(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		target := t.TempDir()
		d.MustCtr(t, "images", "mount", harness.Image, target)
		if _, err := os.Stat(filepath.Join(target, "bin", "busybox")); err != nil {
			t.Error(err)
		}
		d.MustCtr(t, "images", "unmount", "--rm", target)
	})
}

func TestCtrContainers(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("record")
		d.MustCtr(t, "containers", "create", "--label", "port=south", "--env", "A=1", harness.Image, id, "sleep", "1")
		if out := d.MustCtr(t, "containers", "ls", "-q"); out != id+"\n" {
			t.Errorf("containers: %q", out)
		}
		if out := d.MustCtr(t, "containers", "ls", "labels.port==north"); strings.Contains(out, id) {
			t.Errorf("a filter that does not match: %s", out)
		}
		var record struct {
			ID, Image, SnapshotKey string
			Labels                 map[string]string
			Spec                   struct {
				Process struct{ Args, Env []string }
			}
		}
		if err := json.Unmarshal([]byte(d.MustCtr(t, "containers", "info", id)), &record); err != nil {
			t.Fatal(err)
		}
		if record.ID != id || record.Image != harness.Image || record.SnapshotKey != id ||
			record.Labels["port"] != "south" || strings.Join(record.Spec.Process.Args, " ") != "sleep 1" {
			t.Errorf("info: %+v", record)
		}
		d.MustCtr(t, "containers", "label", id, "port=east")
		if out := d.MustCtr(t, "containers", "ls", "-q", "labels.port==east"); out != id+"\n" {
			t.Errorf("after a new label: %q", out)
		}
		if r := d.Ctr(t, "containers", "create", harness.Image, id, "true"); !strings.Contains(r.Stderr, "already exists") {
			t.Errorf("a name that is taken: %s", r)
		}
		d.MustCtr(t, "containers", "rm", id)
		if r := d.Ctr(t, "containers", "info", id); !strings.Contains(r.Stderr, "not found") {
			t.Errorf("info of what is gone: %s", r)
		}
	})
}

func TestCtrSnapshots(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		parent := topLayer(t, d)
		target := filepath.Join(t.TempDir(), "target")
		key, view, done := d.ID("active"), d.ID("view"), d.ID("committed")
		if out := d.MustCtr(t, "snapshots", "prepare", "--target", target, key, parent); !strings.Contains(out, target) {
			t.Errorf("mount commands: %q", out)
		}
		if out := d.MustCtr(t, "snapshots", "ls"); !strings.Contains(out, key) || !strings.Contains(out, "Active") {
			t.Errorf("snapshots:\n%s", out)
		}
		if out := d.MustCtr(t, "snapshots", "info", key); !strings.Contains(out, parent) {
			t.Errorf("info: %s", out)
		}
		d.MustCtr(t, "snapshots", "label", key, "port=west")
		d.MustCtr(t, "snapshots", "usage", key)
		if r := d.Ctr(t, "snapshots", "rm", parent); r.Code == 0 {
			t.Error("a snapshot that has another above it was removed")
		}
		d.MustCtr(t, "snapshots", "commit", done, key)
		// ctr gives a view no label that keeps it: a collection that is still
		// due, since the import, must be over before.
		lease := d.ID("collect")
		d.MustCtr(t, "leases", "create", "--id", lease)
		d.MustCtr(t, "leases", "delete", "--sync", lease)
		d.MustCtr(t, "snapshots", "view", view, done)
		if out := d.MustCtr(t, "snapshots", "tree"); !strings.Contains(out, view) {
			t.Errorf("tree:\n%s", out)
		}
		d.MustCtr(t, "snapshots", "rm", view, done)
		if r := d.Ctr(t, "snapshots", "--snapshotter", "missing", "ls"); r.Code == 0 || !strings.Contains(r.Stderr, "missing") {
			t.Errorf("unknown snapshotter: %s", r)
		}
	})
}

// TestCtrSnapshotsDiff makes a layer from what a container wrote.
func TestCtrSnapshotsDiff(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("writer")
		if r := d.Ctr(t, "run", harness.Image, id, "sh", "-c", "echo kept >/kept; rm /etc/group"); r.Code != 0 {
			t.Fatal(r)
		}
		if out := d.MustCtr(t, "snapshots", "diff", id); len(out) < 64 {
			t.Errorf("the layer has %d bytes", len(out))
		}
		d.MustCtr(t, "containers", "rm", id)
		d.MustCtr(t, "content", "prune", "references")
	})
}

func topLayer(t *testing.T, d *harness.Daemon) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(d.MustCtr(t, "snapshots", "ls")), "\n")
	for _, line := range lines[1:] {
		if fields := strings.Fields(line); fields[len(fields)-1] == "Committed" {
			return fields[0]
		}
	}
	t.Fatalf("the image is not unpacked: %v", lines)
	return ""
}

func TestCtrSnapshotsNative(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		r := d.CtrRun(t, []string{"--snapshotter", "native"}, harness.Image, d.ID("native"), "sh", "-c", "echo x >/x; cat /x")
		if r.Code != 0 || r.Stdout != "x\n" {
			t.Error(r)
		}
	})
}

func TestCtrContent(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const text = "ahoy\n"
		right, wrong := digest.FromString(text), digest.FromString("other")
		ingest := func(expected digest.Digest, ref string) harness.Result {
			return d.Exec(t, text, d.Programs.Ctr, "content", "ingest", "--expected-digest", expected.String(), ref)
		}
		if r := ingest(wrong, d.ID("wrong")); r.Code == 0 {
			t.Error("content with another digest was taken")
		}
		// What was written may be gone on with, until somebody throws it away.
		store := d.Client(t).ContentStore()
		if err := store.Abort(t.Context(), d.ID("wrong")); err != nil {
			t.Error(err)
		}
		if r := ingest(right, d.ID("right")); r.Code != 0 {
			t.Error(r)
		}

		// Content that nothing refers to may be collected at any time: from
		// here on something does.
		kept := content.WithLabels(map[string]string{"containerd.io/gc.root": "yes"})
		desc := ocispec.Descriptor{Digest: digest.FromString(text + text), Size: int64(2 * len(text))}
		if err := content.WriteBlob(t.Context(), store, d.ID("kept"), strings.NewReader(text+text), desc, kept); err != nil {
			t.Fatal(err)
		}
		blob := desc.Digest.String()
		if out := d.MustCtr(t, "content", "get", blob); out != text+text {
			t.Errorf("content: %q", out)
		}
		d.MustCtr(t, "content", "label", blob, "port=north")
		if out := d.MustCtr(t, "content", "ls", "labels.port==north"); !strings.Contains(out, blob) {
			t.Errorf("content with the label:\n%s", out)
		}
		d.MustCtr(t, "content", "active")
		d.MustCtr(t, "content", "rm", blob)
		if r := d.Ctr(t, "content", "get", blob); r.Code == 0 {
			t.Error("removed content is still there")
		}
	})
}

func TestCtrLeases(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("lease")
		d.MustCtr(t, "leases", "create", "--id", id, "--expires", "1h", "port=north")
		if out := d.MustCtr(t, "leases", "ls", "-q"); out != id+"\n" {
			t.Errorf("leases: %q", out)
		}
		if r := d.Ctr(t, "leases", "create", "--id", id); !strings.Contains(r.Stderr, "already exists") {
			t.Errorf("a lease that is there: %s", r)
		}
		d.MustCtr(t, "leases", "rm", "--sync", id)
		if out := d.MustCtr(t, "leases", "ls", "-q"); out != "" {
			t.Errorf("leases: %q", out)
		}
	})
}

func TestCtrNamespaces(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		name := d.Namespace + "b"
		d.MustCtr(t, "namespaces", "create", name, "port=north")
		d.MustCtr(t, "namespaces", "label", name, "port=south")
		if out := d.MustCtr(t, "namespaces", "ls"); !strings.Contains(out, name) || !strings.Contains(out, "port=south") {
			t.Errorf("namespaces:\n%s", out)
		}
		if out := d.MustCtr(t, "--namespace", name, "images", "ls", "-q"); out != "" {
			t.Errorf("images of another namespace: %q", out)
		}
		d.MustCtr(t, "--namespace", name, "images", "import", harness.ImageTar(t))
		if r := d.Ctr(t, "namespaces", "rm", name); r.Code == 0 {
			t.Error("a namespace with an image was removed")
		}
		d.MustCtr(t, "--namespace", name, "images", "rm", "--sync", harness.Image)
		d.MustCtr(t, "namespaces", "rm", name)
		if out := d.MustCtr(t, "namespaces", "ls", "-q"); strings.Contains(out, name) {
			t.Errorf("namespaces: %q", out)
		}
	})
}

func TestCtrPlugins(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		out := d.MustCtr(t, "plugins", "ls")
		for _, want := range []string{
			"io.containerd.snapshotter.v1 overlayfs", "io.containerd.snapshotter.v1 native",
			"io.containerd.content.v1 content", "io.containerd.runtime.v2 task",
		} {
			if !hasLine(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		info := d.MustCtr(t, "plugins", "inspect-runtime")
		var runtime struct {
			Name     string
			Features struct{ OCIVersionMax string }
		}
		if err := json.Unmarshal([]byte(info), &runtime); err != nil || runtime.Name == "" || runtime.Features.OCIVersionMax == "" {
			t.Errorf("runtime: %+v, %v\n%s", runtime, err, info)
		}
	})
}

// hasLine says whether the text has a line whose fields include the words of
// want next to each other.
func hasLine(text, want string) bool {
	for line := range strings.Lines(text) {
		if strings.Contains(strings.Join(strings.Fields(line), " ")+" ", want+" ") {
			return true
		}
	}
	return false
}

func TestCtrVersion(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		out := d.MustCtr(t, "version")
		_, server, ok := strings.Cut(out, "Server:")
		if !ok || !strings.Contains(server, "Version:") || !strings.Contains(server, "UUID:") {
			t.Errorf("version:\n%s", out)
		}
		d.MustCtr(t, "info")
		d.MustCtr(t, "deprecations", "list")
	})
}
