package conformance

import (
	"context"
	"io"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/harness"
)

// newContainer makes a container of the test image.
func (u *calls) newContainer(name string, command ...string) client.Container {
	u.t.Helper()
	img, err := u.c.GetImage(u.ctx, harness.Image)
	u.must(err)
	id := u.d.ID(name)
	c, err := u.c.NewContainer(u.ctx, id, client.WithImage(img), client.WithNewSnapshot(id, img),
		client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs(command...)),
		client.WithContainerLabels(map[string]string{"k": "v"}), client.WithContainerExtension("berth.test", &specs.Process{Cwd: "/"}))
	u.got("Client.NewContainer", err == nil, err)
	u.must(err)
	return c
}

// container asks a container about itself.
func (u *calls) container() {
	c := u.newContainer("described", "sleep", "1000")
	u.got("Container.ID", c.ID(), nil)
	info, err := c.Info(u.ctx)
	info.Spec = nil // it is read below
	u.got("Container.Info", info, err)
	img, err := c.Image(u.ctx)
	u.got("Container.Image", img.Name(), err)
	labels, err := c.SetLabels(u.ctx, map[string]string{"l": "w"})
	u.got("Container.SetLabels", labels, err)
	u.got("Container.Update", nil, c.Update(u.ctx, func(_ context.Context, _ *client.Client, r *containers.Container) error {
		r.Labels["m"] = "x"
		return nil
	}))
	c, err = u.c.LoadContainer(u.ctx, c.ID())
	u.got("Client.LoadContainer", err == nil, err)
	labels, err = c.Labels(u.ctx)
	u.got("Container.Labels", labels, err)
	spec, err := c.Spec(u.ctx)
	u.got("Container.Spec", spec, err)
	extensions, err := c.Extensions(u.ctx)
	u.got("Container.Extensions", len(extensions), err)
	list, err := u.c.Containers(u.ctx)
	u.got("Client.Containers", len(list), err)
	u.got("Container.Delete", nil, c.Delete(u.ctx, client.WithSnapshotCleanup))
}

// piped is IO whose standard input the test writes.
func (u *calls) piped() (cio.Creator, *io.PipeWriter, *strings.Builder) {
	r, w := io.Pipe()
	var out strings.Builder // read after IO().Wait
	return cio.NewCreator(cio.WithStreams(r, &out, io.Discard), cio.WithFIFODir(u.t.TempDir())), w, &out
}

// task goes through a task's life.
func (u *calls) task() {
	c := u.newContainer("lives", "sh", "-c", "read -r line; echo got $line; cat; exit 7")
	streams, stdin, out := u.piped()
	task, err := c.NewTask(u.ctx, streams)
	u.got("Container.NewTask", err == nil, err)
	u.must(err)
	status, err := task.Status(u.ctx)
	u.got("Task.Status", status.Status, err)
	exited, err := task.Wait(u.ctx)
	u.must(err)
	u.got("Task.Start", nil, task.Start(u.ctx))
	u.got("Task.ID", task.ID(), nil)
	u.got("Task.Pid", task.Pid() > 0, nil)
	u.got("Task.IO", task.IO() != nil, nil)
	spec, err := task.Spec(u.ctx)
	u.got("Task.Spec", spec, err)
	pids, err := task.Pids(u.ctx)
	u.got("Task.Pids", len(pids) > 0 && pids[0].Pid == task.Pid(), err)
	metric, err := task.Metrics(u.ctx)
	u.got("Task.Metrics", []string{metric.GetID(), metric.GetData().GetTypeUrl()}, err)
	shares := uint64(512)
	u.got("Task.Update", nil, task.Update(u.ctx, client.WithResources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}})))
	u.got("Task.Pause", nil, task.Pause(u.ctx))
	status, err = task.Status(u.ctx)
	u.got("Task.Status", status.Status, err)
	u.got("Task.Resume", nil, task.Resume(u.ctx))
	again, err := c.Task(u.ctx, nil)
	u.got("Container.Task", again.Pid() == task.Pid(), err)
	list, err := u.c.TaskService().List(u.ctx, nil)
	u.got("Client.TaskService", len(list.GetTasks()), err)
	_, err = stdin.Write([]byte("a line\n"))
	u.must(err)
	u.must(stdin.Close())
	u.got("Task.CloseIO", nil, task.CloseIO(u.ctx, client.WithStdinCloser))
	u.got("Task.Wait", u.exitOf(exited), nil)
	task.IO().Wait()
	u.got("Task.IO", out.String(), nil)
	exit, err := task.Delete(u.ctx)
	u.got("Task.Delete", exit.ExitCode(), err)

	// Again, with a terminal, and killed.
	u.must(c.Update(u.ctx, client.UpdateContainerOpts(client.WithNewSpec(oci.WithTTY, oci.WithProcessArgs("/bin/sleep", "1000"), oci.WithRootFSPath("rootfs")))))
	task, err = c.NewTask(u.ctx, cio.NewCreator(cio.WithTerminal, cio.WithStreams(nil, io.Discard, nil), cio.WithFIFODir(u.t.TempDir())))
	u.must(err)
	exited, err = task.Wait(u.ctx)
	u.must(err)
	u.must(task.Start(u.ctx))
	u.got("Task.Resize", nil, task.Resize(u.ctx, 100, 40))
	u.got("Task.Kill", nil, task.Kill(u.ctx, syscall.SIGKILL))
	u.got("Task.Wait", u.exitOf(exited), nil)
	exit, err = task.Delete(u.ctx)
	u.got("Task.Delete", exit.ExitCode(), err)
	u.must(c.Delete(u.ctx, client.WithSnapshotCleanup))
}

// process runs more processes in a container.
func (u *calls) process() {
	c := u.newContainer("host", "sleep", "1000")
	task, err := c.NewTask(u.ctx, cio.NullIO)
	u.must(err)
	u.must(task.Start(u.ctx))
	spec, err := c.Spec(u.ctx)
	u.must(err)
	run := *spec.Process
	run.Args = []string{"sh", "-c", "read -r line; echo got $line; cat; exit 5"}
	streams, stdin, out := u.piped()
	p, err := task.Exec(u.ctx, u.d.ID("exec"), &run, streams)
	u.got("Task.Exec", err == nil, err)
	u.must(err)
	exited, err := p.Wait(u.ctx)
	u.must(err)
	u.got("Process.Start", nil, p.Start(u.ctx))
	u.got("Process.ID", p.ID(), nil)
	u.got("Process.Pid", p.Pid() > 0, nil)
	status, err := p.Status(u.ctx)
	u.got("Process.Status", status.Status, err)
	loaded, err := task.LoadProcess(u.ctx, p.ID(), nil)
	u.got("Task.LoadProcess", err == nil && loaded.Pid() == p.Pid(), err)
	_, err = stdin.Write([]byte("a line\n"))
	u.must(err)
	u.must(stdin.Close())
	u.got("Process.CloseIO", nil, p.CloseIO(u.ctx, client.WithStdinCloser))
	u.got("Process.Wait", u.exitOf(exited), nil)
	p.IO().Wait()
	u.got("Process.IO", out.String(), nil)
	exit, err := p.Delete(u.ctx)
	u.got("Process.Delete", exit.ExitCode(), err)

	run.Args, run.Terminal = []string{"sleep", "1000"}, true
	p, err = task.Exec(u.ctx, u.d.ID("terminal"), &run, cio.NewCreator(cio.WithTerminal, cio.WithStreams(nil, io.Discard, nil), cio.WithFIFODir(u.t.TempDir())))
	u.must(err)
	exited, err = p.Wait(u.ctx)
	u.must(err)
	u.must(p.Start(u.ctx))
	u.got("Process.Resize", nil, p.Resize(u.ctx, 100, 40))
	u.got("Process.Kill", nil, p.Kill(u.ctx, syscall.SIGKILL))
	u.got("Process.Wait", u.exitOf(exited), nil)
	exit, err = p.Delete(u.ctx)
	u.got("Process.Delete", exit.ExitCode(), err)
	u.remove(c, task)
}

// remove ends a container.
func (u *calls) remove(c client.Container, task client.Task) {
	u.t.Helper()
	_, err := task.Delete(u.ctx, client.WithProcessKill)
	u.must(err)
	u.must(c.Delete(u.ctx, client.WithSnapshotCleanup))
}

// checkpoint saves what can be saved without criu, and makes a container of it.
func (u *calls) checkpoint() {
	const ref = "berth.test/checkpoint:1"
	c := u.newContainer("saved", "sleep", "1000")
	_, err := c.Restore(u.ctx, cio.NullIO, u.dir)
	u.got("Container.Restore", nil, err)
	task, err := c.NewTask(u.ctx, cio.NullIO)
	u.must(err)
	u.must(task.Start(u.ctx))
	_, err = task.Checkpoint(u.ctx)
	u.got("Task.Checkpoint", nil, err)
	status, err := task.Status(u.ctx)
	u.got("Task.Status", status.Status, err)
	img, err := c.Checkpoint(u.ctx, ref, client.WithCheckpointRW, client.WithCheckpointImage)
	u.got("Container.Checkpoint", err == nil, err)
	u.must(err)
	restored, err := u.c.Restore(u.ctx, u.d.ID("restored"), img, client.WithRestoreImage, client.WithRestoreRW, noSpec)
	u.got("Client.Restore", err == nil, err)
	u.must(err)
	info, err := restored.Info(u.ctx)
	u.got("Client.Restore", []string{info.Image, info.Snapshotter}, err)
	u.must(restored.Delete(u.ctx, client.WithSnapshotCleanup))
	u.remove(c, task)
	u.must(u.c.ImageService().Delete(u.ctx, ref, images.SynchronousDelete()))
}

// noSpec gives a restored container a spec: that of the checkpoint is saved
// with the processes only.
func noSpec(context.Context, string, *client.Client, client.Image, *ocispec.Index) client.NewContainerOpts {
	return client.WithNewSpec()
}
