package conformance

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berthd/berth/test/harness"
)

// layered is a root file system that needs the mount manager: the lower
// directory is mounted by it, the overlay refers to where, and two directories
// are to be made.
type layered struct{ lower, upper, work string }

func newLayered(t *testing.T, d *harness.Daemon, name string) layered {
	t.Helper()
	dir := filepath.Join(d.Root, "layered-"+name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return layered{harness.Rootfs(t), filepath.Join(dir, "upper"), filepath.Join(dir, "work")}
}

func (l layered) mounts() []mount.Mount {
	return []mount.Mount{
		{Type: "bind", Source: l.lower, Options: []string{"rbind", "ro"}},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path=" + l.upper, "X-containerd.mkdir.path=" + l.work,
			"lowerdir={{ mount 0 }}", "upperdir=" + l.upper, "workdir=" + l.work,
		}},
	}
}

// create makes a container and, on the layered root, its task.
func (l layered) create(ctx context.Context, c *containerd.Client, id string, command ...string) (containerd.Task, error) {
	spec := []oci.SpecOpts{oci.WithRootFSPath("rootfs"), oci.WithProcessArgs(command...)}
	container, err := c.NewContainer(ctx, id, containerd.WithNewSpec(spec...))
	if err != nil {
		return nil, err
	}
	return container.NewTask(ctx, cio.NullIO, containerd.WithRootFS(l.mounts()))
}

func remove(ctx context.Context, t *testing.T, c *containerd.Client, id string) {
	t.Helper()
	container, err := c.LoadContainer(ctx, id)
	if err == nil {
		err = container.Delete(ctx)
	}
	if err != nil {
		t.Error(err)
	}
}

func activations(ctx context.Context, t *testing.T, c *containerd.Client) []string {
	t.Helper()
	list, err := c.MountManager().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range list {
		names = append(names, a.Name)
	}
	return names
}

// A task's root may be of mounts that are more than a mount(2).
func TestMountedRoot(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		c := d.Client(t)
		ctx := namespaces.WithNamespace(t.Context(), d.Namespace)
		id, l := d.ID("layered"), newLayered(t, d, "a")
		task, err := l.create(ctx, c, id, "/bin/sh", "-c", "cat /bin/sh >/copy && echo done >/out && exit 7")
		if err != nil {
			t.Fatal(err)
		}
		if got := activations(ctx, t, c); len(got) != 1 || got[0] != id {
			t.Errorf("activations %q, want the container's", got)
		}
		exits, err := task.Wait(ctx)
		if err == nil {
			err = task.Start(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		if exit := <-exits; exit.ExitCode() != 7 {
			t.Errorf("exit %d, %v", exit.ExitCode(), exit.Error())
		}
		if _, err := task.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		if out, err := os.ReadFile(filepath.Join(l.upper, "out")); err != nil || string(out) != "done\n" {
			t.Errorf("in the upper directory: %q, %v", out, err)
		}
		if got := activations(ctx, t, c); len(got) != 0 {
			t.Errorf("activations after the delete: %q", got)
		}
		remove(ctx, t, c, id)
	})
}

// They are undone by a daemon that did not make them, and where the create
// fails.
func TestMountedRootIsUndone(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		ctx := namespaces.WithNamespace(t.Context(), d.Namespace)
		id := d.ID("layered")
		task, err := newLayered(t, d, "a").create(ctx, d.Client(t), id, "/bin/sleep", "1000")
		if err == nil {
			err = task.Start(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Kill(t)
		d.Boot(t)
		c := d.Client(t)
		container, err := c.LoadContainer(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if task, err = container.Task(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Fatal(err)
		}
		if got := activations(ctx, t, c); len(got) != 0 {
			t.Errorf("activations after the delete: %q", got)
		}
		remove(ctx, t, c, id)

		// What fails after the mounts: the command is not there.
		bad := d.ID("bad")
		if _, err := newLayered(t, d, "b").create(ctx, c, bad, "/no/such/command"); err == nil {
			t.Error("a task of a command that is not there was made")
		}
		// And in them: the directory may not be made there.
		worse, l := d.ID("worse"), newLayered(t, d, "c")
		l.upper = filepath.Join(t.TempDir(), "upper")
		if _, err := l.create(ctx, c, worse, "/bin/true"); err == nil || !strings.Contains(err.Error(), "root") {
			t.Errorf("a directory outside of the roots: %v", err)
		}
		if got := activations(ctx, t, c); len(got) != 0 {
			t.Errorf("activations after failures: %q", got)
		}
		remove(ctx, t, c, bad)
		remove(ctx, t, c, worse)
	})
}

// An activation that a crash left under the container's name is not taken for
// the root of a later task. Stock takes it.
func TestMountedRootOfAnEarlierTask(t *testing.T) {
	d := harness.Start(t, harness.Config{})
	c := d.Client(t)
	ctx := namespaces.WithNamespace(t.Context(), d.Namespace)
	id, old, l := d.ID("layered"), newLayered(t, d, "old"), newLayered(t, d, "new")
	_, err := c.MountManager().Activate(ctx, id, old.mounts(), mount.WithLabels(map[string]string{"containerd.io/gc.bref.container": id}))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.lower, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	task, err := l.create(ctx, c, id, "/bin/cat", "/new")
	if err != nil {
		t.Fatal(err)
	}
	exits, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	if exit := <-exits; exit.ExitCode() != 0 {
		t.Errorf("exit %d, %v: not the root that was asked for", exit.ExitCode(), exit.Error())
	}
	if _, err := task.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	remove(ctx, t, c, id)
}
