package speccheck

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/anypb"
)

const typePrefix = "types.containerd.io/opencontainers/runtime-spec/1/"

// hold starts a container that does nothing, until the test's end.
func (l *lab) hold(ctx context.Context, t *testing.T, r *runtime, p *place, u *use) {
	t.Helper()
	spec, err := u.build([]string{"sleep", "1000"}, p.names...)
	if err != nil {
		t.Fatal(err)
	}
	container := l.container(ctx, t, r, p.id, spec)
	t.Cleanup(func() {
		ctx, cancel := l.context()
		defer cancel()
		if err := container.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := l.context()
		defer cancel()
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
	})
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// exec runs a process, a JSON object, in a container to its end.
func (l *lab) exec(ctx context.Context, t *testing.T, id, execID, log string, process []byte) error {
	t.Helper()
	io, err := cio.LogFile(log)(execID)
	if err != nil {
		t.Fatal(err)
	}
	service := l.client.TaskService()
	if _, err := service.Exec(ctx, &tasks.ExecProcessRequest{
		ContainerID: id, ExecID: execID, Stdout: io.Config().Stdout, Stderr: io.Config().Stderr,
		Spec: &anypb.Any{TypeUrl: typePrefix + "Process", Value: process},
	}); err != nil {
		return errgrpc.ToNative(err)
	}
	_, startErr := service.Start(ctx, &tasks.StartRequest{ContainerID: id, ExecID: execID})
	if startErr == nil {
		if _, err := service.Wait(ctx, &tasks.WaitRequest{ContainerID: id, ExecID: execID}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := service.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: execID}); err != nil {
		t.Error(err)
	}
	return errgrpc.ToNative(startErr)
}

// tryExec asks for a use in the process of an exec, in a container that does
// not ask for it.
func (l *lab) tryExec(t *testing.T, r *runtime, container string, u *use) trial {
	t.Helper()
	p := l.place(t, r, u, "exec-")
	ctx, cancel := l.context()
	defer cancel()
	process := u.part(t, p, "process")
	if err := l.exec(ctx, t, container, p.id, p.log, process); err != nil {
		if !strings.Contains(r.calledFor(t, container), p.id) {
			return trial{outcome: refused, err: err}
		}
		return trial{outcome: late, err: err}
	}
	return u.look(t, p, container)
}

// tryUpdate asks for a use in an update of a running container's resources.
func (l *lab) tryUpdate(t *testing.T, r *runtime, u *use) trial {
	t.Helper()
	p := l.place(t, r, u, "update-")
	ctx, cancel := l.context()
	defer cancel()
	resources := u.part(t, p, "linux", "resources")
	plain := use{spec: u.spec[:1]} // without the resources
	l.hold(ctx, t, r, p, &plain)
	_, err := l.client.TaskService().Update(ctx, &tasks.UpdateTaskRequest{
		ContainerID: p.id, Resources: &anypb.Any{TypeUrl: typePrefix + "LinuxResources", Value: resources},
	})
	if err != nil {
		if !r.ran(t, "update", p.id) {
			return trial{outcome: refused, err: errgrpc.ToNative(err)}
		}
		return trial{outcome: late, err: errgrpc.ToNative(err)}
	}
	if err := l.exec(ctx, t, p.id, p.id, p.log, (&use{probe: u.probe}).part(t, p, "process")); err != nil {
		t.Fatal(err)
	}
	return u.look(t, p, p.id)
}

// part builds the spec of a use and takes a part of it.
func (u *use) part(t *testing.T, p *place, path ...string) []byte {
	t.Helper()
	part, err := u.build(u.command(), p.names...)
	for _, name := range path {
		if err != nil {
			t.Fatal(err)
		}
		members := map[string]json.RawMessage{}
		err = json.Unmarshal(part, &members)
		part = members[name]
	}
	if err != nil {
		t.Fatal(err)
	}
	return part
}
