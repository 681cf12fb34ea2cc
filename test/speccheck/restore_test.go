package speccheck

import (
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/berthd/berth/test/harness"
)

// TestRestore restores a checkpoint, once with a spec that the runtime would
// ignore in part. The runtime is a fake one: CRIU does not work everywhere.
func TestRestore(t *testing.T) {
	l := newLab(t, harness.Config{})
	r, _ := fakeRuntime(t, nil)
	ctx, cancel := l.context()
	defer cancel()
	first := use{name: "checkpointed"}
	p := l.place(t, r, &first, "")
	l.hold(ctx, t, r, p, &first)
	container, err := l.client.LoadContainer(ctx, p.id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	image, err := task.Checkpoint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.client.ImageService().Delete(ctx, image.Name(), images.SynchronousDelete()); err != nil {
			t.Error(err)
		}
	}()

	for _, u := range []use{
		{name: "restored", path: "process"},
		{name: "refused", path: "linux.seccomp.syscalls[0].action", by: nobody, spec: []string{
			`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_BERTH"}]}}}`,
		}},
	} {
		p := l.place(t, r, &u, "")
		spec, err := u.build([]string{"sleep", "1000"}, p.names...)
		if err != nil {
			t.Fatal(err)
		}
		container := l.container(ctx, t, r, p.id, spec)
		task, err := container.NewTask(ctx, cio.NullIO, containerd.WithTaskCheckpoint(image))
		switch {
		case u.by != nil:
			if err == nil || r.calledFor(t, p.id) != "" {
				t.Errorf("the runtime was called: %s", r.calledFor(t, p.id))
			}
			l.check(t, r, &u, u.by, nil, trial{outcome: refused, err: err})
		case err != nil:
			t.Error(err)
		default:
			if err := task.Start(ctx); err != nil {
				t.Error(err)
			}
			if !r.ran(t, "restore", p.id) {
				t.Errorf("the runtime restored nothing: %s", r.calledFor(t, p.id))
			}
		}
		if task != nil {
			if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
				t.Error(err)
			}
		}
		if err := container.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
}
