package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// The commands of ctr that test/integration does not use.

// Push and pull, through the transfer service and by the client, and raw
// objects, with a registry on loopback.
func TestCtrRegistry(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		host := testimage.NewRegistry(t).Host
		digests := make(map[string]bool)
		for _, local := range []string{"--local=true", "--local=false"} {
			name := host + "/pushed:" + strings.TrimPrefix(local, "--local=")
			d.MustCtr(t, "images", "push", "--plain-http", local, name, harness.Image)
			d.MustCtr(t, "images", "pull", "--plain-http", local, name)
			if r := d.CtrRun(t, nil, name, d.ID("pulled-"+strings.TrimPrefix(local, "--local=")), "echo", "pulled"); r.Stdout != "pulled\n" {
				t.Errorf("from the pulled image: %s", r)
			}
			digests[imageDigest(t, d, name)] = true
			d.MustCtr(t, "images", "rm", "--sync", name)
		}
		if len(digests) != 1 {
			t.Errorf("the same image has the digests %v", digests)
		}

		name := host + "/pushed:true"
		d.MustCtr(t, "content", "fetch", "--plain-http", name)
		dgst := imageDigest(t, d, name)
		manifest := d.MustCtr(t, "content", "fetch-object", "--plain-http", name)
		if !strings.Contains(manifest, `"schemaVersion"`) {
			t.Errorf("fetch-object gives %.200s", manifest)
		}
		var image struct{ Config struct{ Digest string } }
		if err := json.Unmarshal([]byte(manifest), &image); err != nil || image.Config.Digest == "" {
			t.Fatalf("manifest is %.200s, %v", manifest, err)
		}
		blob := d.MustCtr(t, "content", "fetch-blob", "--plain-http", name, image.Config.Digest)
		if got := d.MustCtr(t, "content", "get", image.Config.Digest); got != blob || digest.FromString(blob).String() != image.Config.Digest {
			t.Errorf("the configuration from the registry is %.100q, from the store %.100q", blob, got)
		}
		d.MustCtr(t, "images", "rm", "--sync", name)
		if r := d.Ctr(t, "images", "pull", "--plain-http", host+"/none:1"); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("pull of what is not there: %s", r)
		}
		if dgst == "" {
			t.Error("the fetched image has no digest")
		}
	})
}

// imageDigest returns what ctr lists for an image.
func imageDigest(t *testing.T, d *harness.Daemon, name string) string {
	t.Helper()
	for line := range strings.Lines(d.MustCtr(t, "images", "ls", "name=="+name)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == name {
			return fields[2]
		}
	}
	t.Fatalf("no image %s", name)
	return ""
}

func TestCtrImageTools(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const converted, unused = "berth.test/converted:1", "berth.test/unused:1"
		d.MustCtr(t, "images", "convert", "--uncompress", "--oci", harness.Image, converted)
		if imageDigest(t, d, converted) == imageDigest(t, d, harness.Image) {
			t.Error("an image without compression has the digest of that with it")
		}
		if r := d.CtrRun(t, nil, converted, d.ID("converted"), "echo", "plain"); r.Stdout != "plain\n" {
			t.Errorf("from the converted image: %s", r)
		}
		if out := d.MustCtr(t, "images", "inspect", converted); !strings.Contains(out, "manifest") {
			t.Errorf("inspect: %s", out)
		}
		if out := d.MustCtr(t, "images", "usage", converted); strings.TrimSpace(out) == "" {
			t.Error("usage of an unpacked image is empty")
		}
		d.MustCtr(t, "images", "tag", harness.Image, unused)
		id := d.ID("user")
		d.MustCtr(t, "containers", "create", harness.Image, id, "true")
		d.MustCtr(t, "images", "prune", "--all")
		if out := d.MustCtr(t, "images", "ls", "-q"); out != harness.Image+"\n" {
			t.Errorf("images after prune, with a container of one: %q", out)
		}
		d.MustCtr(t, "containers", "rm", id)
	})
}

func TestCtrContent(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		const text = "hello content\n"
		dgst := digest.FromString(text).String()
		// Nothing refers to it: a collection may come before the label that keeps it.
		harness.Await(t, time.Minute, "content is ingested", func() bool {
			r := d.Exec(t, text, d.Programs.Ctr, "content", "ingest", "--expected-size", "14", "--expected-digest", dgst, "right")
			if r.Code != 0 {
				t.Fatal(r)
			}
			return d.Ctr(t, "content", "label", dgst, "containerd.io/gc.root=test").Code == 0
		})
		if got := d.MustCtr(t, "content", "get", dgst); got != text {
			t.Errorf("content is %q", got)
		}
		d.MustCtr(t, "content", "label", dgst, "k=v")
		if out := d.MustCtr(t, "content", "ls", "labels.k==v"); !strings.Contains(out, dgst) {
			t.Errorf("content with the label: %s", out)
		}
		editor := filepath.Join(t.TempDir(), "editor")
		if err := os.WriteFile(editor, []byte("#!/bin/sh\necho edited > \"$1\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		harness.Await(t, time.Minute, "content is edited", func() bool {
			edited := strings.TrimSpace(d.MustCtr(t, "content", "edit", "--editor", editor, dgst))
			return edited == digest.FromString("edited\n").String() && d.Ctr(t, "content", "get", edited).Stdout == "edited\n"
		})
		d.MustCtr(t, "content", "rm", dgst)
		if r := d.Ctr(t, "content", "get", dgst); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("content that was removed: %s", r)
		}
	})
}

func TestCtrRest(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		if out := d.MustCtr(t, "oci", "spec"); !strings.Contains(out, `"ociVersion"`) {
			t.Errorf("spec: %.200s", out)
		}
		key, target := d.ID("mounted"), filepath.Join(t.TempDir(), "m")
		d.MustCtr(t, "snapshots", "prepare", key)
		if out := d.MustCtr(t, "snapshots", "mounts", target, key); !strings.Contains(out, "mount -t") || !strings.Contains(out, target) {
			t.Errorf("mounts of a snapshot: %q", out)
		}
		d.MustCtr(t, "snapshots", "rm", key)
		d.MustCtr(t, "snapshots", "unpack", imageDigest(t, d, harness.Image))

		// A task for a container that is there, and again after its end.
		id := d.ID("twice")
		d.MustCtr(t, "containers", "create", harness.Image, id, "sh", "-c", "exit 6")
		for range 2 {
			if r := d.Ctr(t, "tasks", "start", "--null-io", id); r.Code != 6 {
				t.Errorf("start in the foreground: %s, want exit code 6", r)
			}
		}
		d.MustCtr(t, "containers", "rm", id)
		if r := d.Ctr(t, "tasks", "start", d.ID("none")); r.Code == 0 || !strings.Contains(r.Stderr, "not found") {
			t.Errorf("start of a container that is not there: %s", r)
		}
	})
}
