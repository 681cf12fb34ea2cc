package api_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/faketask"
	"github.com/berthd/berth/internal/storage"
	"github.com/berthd/berth/task"
)

// taskBench is a task service over a real store and a fake runner.
type taskBench struct {
	*api.Tasks
	runner *faketask.Runner
	store  *storage.Store
	temp   string
	ctx    context.Context
}

func newTaskBench(t *testing.T) *taskBench {
	t.Helper()
	dir := t.TempDir()
	store, err := storage.Open(t.Context(), storage.Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Snapshotter: storage.Native,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &taskBench{
		runner: &faketask.Runner{}, store: store, temp: filepath.Join(dir, "tmp"),
		ctx: namespaces.WithNamespace(t.Context(), "default"),
	}
	b.Tasks = api.NewTasks(api.TasksConfig{
		Runner: b.runner, Containers: store.Containers, Content: store.Content, TempDir: b.temp,
		StateTimeout: 200 * time.Millisecond,
	})
	return b
}

// record stores a container.
func (b *taskBench) record(t *testing.T, id string, change ...func(*containers.Container)) {
	t.Helper()
	c := containers.Container{
		ID:      id,
		Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"},
		Spec:    &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(`{"ociVersion":"1.2.0"}`)},
	}
	for _, f := range change {
		f(&c)
	}
	if _, err := b.store.Containers.Create(b.ctx, c); err != nil {
		t.Fatal(err)
	}
}

// running makes a container whose task runs.
func (b *taskBench) running(t *testing.T, id string) {
	t.Helper()
	b.record(t, id)
	if _, err := b.Create(b.ctx, &tasksapi.CreateTaskRequest{ContainerID: id, Stdin: "in"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(b.ctx, &tasksapi.StartRequest{ContainerID: id}); err != nil {
		t.Fatal(err)
	}
}

func (b *taskBench) config(t *testing.T, id string) task.CreateConfig {
	t.Helper()
	got, err := b.runner.Get(b.ctx, task.ID{Namespace: "default", Container: id})
	if err != nil {
		t.Fatal(err)
	}
	return got.(*faketask.Task).Config
}

func mustAny(t *testing.T, v any) *anypb.Any {
	t.Helper()
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func wantClass(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) && !errors.Is(errgrpc.ToNative(err), class) {
		t.Errorf("%s gives %v, want %v", what, err, class)
	}
}

func TestTaskLife(t *testing.T) {
	b := newTaskBench(t)
	b.running(t, "c")

	spec := &anypb.Any{Value: []byte(`{"args":["true"]}`)}
	if _, err := b.Exec(b.ctx, &tasksapi.ExecProcessRequest{ContainerID: "c", ExecID: "e", Spec: spec, Stdout: "out"}); err != nil {
		t.Fatal(err)
	}
	started, err := b.Start(b.ctx, &tasksapi.StartRequest{ContainerID: "c", ExecID: "e"})
	if err != nil {
		t.Fatal(err)
	}
	pids, err := b.ListPids(b.ctx, &tasksapi.ListPidsRequest{ContainerID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range pids.Processes {
		if p.Pid != started.Pid {
			continue
		}
		v, err := typeurl.UnmarshalAny(p.Info)
		if err != nil {
			t.Fatal(err)
		}
		found = v.(*runcoptions.ProcessDetails).ExecID == "e"
	}
	if !found || len(pids.Processes) != 2 {
		t.Errorf("processes %v lack exec e with pid %d", pids.Processes, started.Pid)
	}
	if _, err := b.Kill(b.ctx, &tasksapi.KillRequest{ContainerID: "c", ExecID: "e", Signal: 15, All: true}); err != nil {
		t.Fatal(err)
	}
	waited, err := b.Wait(b.ctx, &tasksapi.WaitRequest{ContainerID: "c", ExecID: "e"})
	if err != nil || waited.ExitStatus != 143 {
		t.Errorf("exec ended with %v, %v, want 143", waited, err)
	}
	got, err := b.Get(b.ctx, &tasksapi.GetRequest{ContainerID: "c", ExecID: "e"})
	if err != nil || got.Process.ID != "e" || got.Process.ContainerID != "c" || got.Process.Status != taskapi.Status_STOPPED ||
		got.Process.ExitStatus != 143 || got.Process.Stdout != "out" {
		t.Errorf("exec is %v, %v", got, err)
	}
	gone, err := b.DeleteProcess(b.ctx, &tasksapi.DeleteProcessRequest{ContainerID: "c", ExecID: "e"})
	if err != nil || gone.ID != "e" || gone.ExitStatus != 143 {
		t.Errorf("deleted exec is %v, %v", gone, err)
	}

	for _, step := range []struct {
		do   func() error
		want taskapi.Status
	}{
		{func() error { _, err := b.Pause(b.ctx, &tasksapi.PauseTaskRequest{ContainerID: "c"}); return err }, taskapi.Status_PAUSED},
		{func() error { _, err := b.Resume(b.ctx, &tasksapi.ResumeTaskRequest{ContainerID: "c"}); return err }, taskapi.Status_RUNNING},
		{func() error {
			_, err := b.Kill(b.ctx, &tasksapi.KillRequest{ContainerID: "c", Signal: 9})
			return err
		}, taskapi.Status_STOPPED},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(b.ctx, &tasksapi.GetRequest{ContainerID: "c"})
		if err != nil || got.Process.Status != step.want || got.Process.ID != "c" {
			t.Errorf("task is %v, %v, want %v", got, err, step.want)
		}
	}
	end, err := b.Delete(b.ctx, &tasksapi.DeleteTaskRequest{ContainerID: "c"})
	if err != nil || end.ExitStatus != 137 || end.Pid == 0 || end.ID != "" || end.ExitedAt.AsTime().IsZero() {
		t.Errorf("deleted task is %v, %v", end, err)
	}
	_, err = b.Delete(b.ctx, &tasksapi.DeleteTaskRequest{ContainerID: "c"})
	wantClass(t, "second delete", err, errdefs.ErrNotFound)
}

func TestTaskRefusals(t *testing.T) {
	b := newTaskBench(t)
	b.running(t, "c")
	b.record(t, "idle")
	b.record(t, "specless", func(c *containers.Container) { c.Spec = &anypb.Any{} })
	spec := &anypb.Any{Value: []byte(`{}`)}
	tests := []struct {
		name string
		do   func(ctx context.Context) error
		want error
	}{
		{"create without a record", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: "none"})
			return err
		}, errdefs.ErrNotFound},
		{"create twice", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: "c"})
			return err
		}, errdefs.ErrAlreadyExists},
		{"create without a spec", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: "specless"})
			return err
		}, errdefs.ErrFailedPrecondition},
		{"start without a task", func(ctx context.Context) error {
			_, err := b.Start(ctx, &tasksapi.StartRequest{ContainerID: "idle"})
			return err
		}, errdefs.ErrNotFound},
		{"start twice", func(ctx context.Context) error {
			_, err := b.Start(ctx, &tasksapi.StartRequest{ContainerID: "c"})
			return err
		}, errdefs.ErrFailedPrecondition},
		{"delete while it runs", func(ctx context.Context) error {
			_, err := b.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: "c"})
			return err
		}, errdefs.ErrFailedPrecondition},
		{"exec without an id", func(ctx context.Context) error {
			_, err := b.Exec(ctx, &tasksapi.ExecProcessRequest{ContainerID: "c", Spec: spec})
			return err
		}, errdefs.ErrInvalidArgument},
		{"exec with a path for an id", func(ctx context.Context) error {
			_, err := b.Exec(ctx, &tasksapi.ExecProcessRequest{ContainerID: "c", ExecID: "../x", Spec: spec})
			return err
		}, errdefs.ErrInvalidArgument},
		{"exec without a spec", func(ctx context.Context) error {
			_, err := b.Exec(ctx, &tasksapi.ExecProcessRequest{ContainerID: "c", ExecID: "x"})
			return err
		}, errdefs.ErrInvalidArgument},
		{"unknown exec", func(ctx context.Context) error {
			_, err := b.Get(ctx, &tasksapi.GetRequest{ContainerID: "c", ExecID: "x"})
			return err
		}, errdefs.ErrNotFound},
		{"delete an exec without an id", func(ctx context.Context) error {
			_, err := b.DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: "c"})
			return err
		}, errdefs.ErrInvalidArgument},
		{"signal 65", func(ctx context.Context) error {
			_, err := b.Kill(ctx, &tasksapi.KillRequest{ContainerID: "c", Signal: 65})
			return err
		}, errdefs.ErrInvalidArgument},
		{"a terminal that is too wide", func(ctx context.Context) error {
			_, err := b.ResizePty(ctx, &tasksapi.ResizePtyRequest{ContainerID: "c", Width: 1 << 16})
			return err
		}, errdefs.ErrInvalidArgument},
		{"bad list filter", func(ctx context.Context) error {
			_, err := b.List(ctx, &tasksapi.ListTasksRequest{Filter: `id=="`})
			return err
		}, errdefs.ErrInvalidArgument},
		{"bad metrics filter", func(ctx context.Context) error {
			_, err := b.Metrics(ctx, &tasksapi.MetricsRequest{Filters: []string{`id=="`}})
			return err
		}, errdefs.ErrInvalidArgument},
		{"checkpoint options of another type", func(ctx context.Context) error {
			_, err := b.Checkpoint(ctx, &tasksapi.CheckpointTaskRequest{ContainerID: "c", Options: mustAny(t, &runcoptions.Options{})})
			return err
		}, errdefs.ErrInvalidArgument},
		{"broken runc options", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{
				ContainerID: "idle", Options: &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff}},
			})
			return err
		}, errdefs.ErrInvalidArgument},
		{"restore of something else", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{
				ContainerID: "idle", Checkpoint: &types.Descriptor{MediaType: "text/plain", Digest: digest.FromString("x").String()},
			})
			return err
		}, errdefs.ErrInvalidArgument},
		{"restore from a path of the host", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{
				ContainerID: "idle", Checkpoint: &types.Descriptor{Annotations: map[string]string{"RestoreFromPath": "/etc"}},
			})
			return err
		}, errdefs.ErrNotImplemented},
		{"restore of a blob that is not there", func(ctx context.Context) error {
			_, err := b.Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: "idle", Checkpoint: &types.Descriptor{
				MediaType: images.MediaTypeContainerd1Checkpoint, Digest: digest.FromString("x").String(), Size: 1,
			}})
			return err
		}, errdefs.ErrNotFound},
	}
	for _, tt := range tests {
		wantClass(t, tt.name, tt.do(b.ctx), tt.want)
	}
	if entries, err := filepath.Glob(filepath.Join(b.temp, "*", "*", "*")); err != nil || len(entries) > 0 {
		t.Errorf("refused creates left %v, %v", entries, err)
	}
}

func TestTasksNeedANamespace(t *testing.T) {
	b := newTaskBench(t)
	_, err := b.Create(t.Context(), &tasksapi.CreateTaskRequest{ContainerID: "c"})
	wantClass(t, "create", err, errdefs.ErrFailedPrecondition)
	_, err = b.Get(t.Context(), &tasksapi.GetRequest{ContainerID: "c"})
	wantClass(t, "get", err, errdefs.ErrFailedPrecondition)
	_, err = b.List(t.Context(), &tasksapi.ListTasksRequest{})
	wantClass(t, "list", err, errdefs.ErrFailedPrecondition)
	_, err = b.Metrics(t.Context(), &tasksapi.MetricsRequest{})
	wantClass(t, "metrics", err, errdefs.ErrFailedPrecondition)
}

func TestCreateOptions(t *testing.T) {
	b := newTaskBench(t)
	recorded := mustAny(t, &runcoptions.Options{Root: "/recorded"})
	b.record(t, "c", func(c *containers.Container) {
		c.Runtime.Options = recorded
		c.SandboxID = "sandbox"
	})
	create := func(r *tasksapi.CreateTaskRequest) task.CreateConfig {
		t.Helper()
		r.ContainerID = "c"
		if _, err := b.Create(b.ctx, r); err != nil {
			t.Fatal(err)
		}
		cfg := b.config(t, "c")
		if _, err := b.Delete(b.ctx, &tasksapi.DeleteTaskRequest{ContainerID: "c"}); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	cfg := create(&tasksapi.CreateTaskRequest{Rootfs: []*types.Mount{{Type: "bind", Source: "/a", Options: []string{"ro"}}}, Stdout: "o"})
	if string(cfg.Options.Value) != string(recorded.Value) || cfg.Options.TypeURL != recorded.TypeUrl {
		t.Errorf("options without the request's are %v", cfg.Options)
	}
	if cfg.SandboxID != "sandbox" || cfg.Runtime != "io.containerd.runc.v2" || string(cfg.Spec) != `{"ociVersion":"1.2.0"}` ||
		len(cfg.Rootfs) != 1 || cfg.Rootfs[0].Options[0] != "ro" || cfg.Stdio.Stdout != "o" {
		t.Errorf("config is %+v", cfg)
	}

	//lint:ignore SA1019 older clients set nothing else
	own := mustAny(t, &runcoptions.Options{Root: "/own", CriuImagePath: "/criu", TaskApiAddress: "ttrpc+unix:///old", TaskApiVersion: 2}) //nolint:staticcheck // as above
	cfg = create(&tasksapi.CreateTaskRequest{Options: own, RuntimePath: "/bin/shim"})
	if string(cfg.Options.Value) != string(own.Value) || cfg.Checkpoint != "/criu" || cfg.Runtime != "/bin/shim" ||
		cfg.SandboxAddress != "ttrpc+unix:///old" || cfg.SandboxVersion != 2 {
		t.Errorf("config with runc options is %+v", cfg)
	}
	cfg = create(&tasksapi.CreateTaskRequest{Options: own, TaskApiAddress: "ttrpc+unix:///new", TaskApiVersion: 3})
	if cfg.SandboxAddress != "ttrpc+unix:///new" || cfg.SandboxVersion != 3 {
		t.Errorf("the request's address is not taken: %+v", cfg)
	}
	foreign := &anypb.Any{TypeUrl: "some.shim.Options", Value: []byte("x")}
	if cfg = create(&tasksapi.CreateTaskRequest{Options: foreign}); cfg.Options.TypeURL != foreign.TypeUrl {
		t.Errorf("options of another shim become %+v", cfg.Options)
	}
	if cfg = create(&tasksapi.CreateTaskRequest{Options: &anypb.Any{TypeUrl: own.TypeUrl}}); string(cfg.Options.Value) != string(recorded.Value) {
		t.Errorf("empty options hide the recorded ones: %+v", cfg.Options)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	b := newTaskBench(t)
	b.record(t, "c")
	b.runner.OnState = func(context.Context, task.ID) error { return context.Canceled }
	_, err := b.Create(b.ctx, &tasksapi.CreateTaskRequest{ContainerID: "c"})
	wantClass(t, "create that loses its caller", err, context.Canceled)
	if _, err := b.runner.Get(b.ctx, task.ID{Namespace: "default", Container: "c"}); !errdefs.IsNotFound(err) {
		t.Errorf("the task of a failed create: %v, want NotFound", err)
	}
}

func TestTasksWithoutRecordCanBeEnded(t *testing.T) {
	b := newTaskBench(t)
	b.running(t, "c")
	if err := b.store.Containers.Delete(b.ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Kill(b.ctx, &tasksapi.KillRequest{ContainerID: "c", Signal: 9}); err != nil {
		t.Error(err)
	}
	if _, err := b.Delete(b.ctx, &tasksapi.DeleteTaskRequest{ContainerID: "c"}); err != nil {
		t.Error(err)
	}
	_, err := b.Get(b.ctx, &tasksapi.GetRequest{ContainerID: "c"})
	if wantClass(t, "get", err, errdefs.ErrNotFound); !strings.Contains(err.Error(), `container "c"`) {
		t.Errorf("the error does not name the container: %v", err)
	}
}

func TestListAndMetrics(t *testing.T) {
	b := newTaskBench(t)
	for _, id := range []string{"b", "a", "hung"} {
		b.running(t, id)
	}
	other := namespaces.WithNamespace(t.Context(), "other")
	if _, err := b.runner.Create(other, task.ID{Namespace: "other", Container: "z"}, task.CreateConfig{}); err != nil {
		t.Fatal(err)
	}
	b.runner.OnState = func(ctx context.Context, id task.ID) error {
		if id.Container != "hung" {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	ids := func(r *tasksapi.ListTasksRequest) string {
		t.Helper()
		resp, err := b.List(b.ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, p := range resp.Tasks {
			s = append(s, p.ID)
		}
		return strings.Join(s, " ")
	}
	if got := ids(&tasksapi.ListTasksRequest{}); got != "a b" {
		t.Errorf("list is %q, want the tasks that answer, by id", got)
	}
	if got := ids(&tasksapi.ListTasksRequest{Filter: "id==b,status==RUNNING"}); got != "b" {
		t.Errorf("filtered list is %q", got)
	}

	m, err := b.Metrics(b.ctx, &tasksapi.MetricsRequest{Filters: []string{"id==a", "id==b"}})
	if err != nil || len(m.Metrics) != 2 || m.Metrics[0].ID != "a" || string(m.Metrics[1].Data.Value) != "b" {
		t.Errorf("metrics are %v, %v", m, err)
	}
	if _, err := b.Kill(b.ctx, &tasksapi.KillRequest{ContainerID: "a", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if m, err = b.Metrics(b.ctx, &tasksapi.MetricsRequest{}); err != nil || len(m.Metrics) != 2 {
		t.Errorf("metrics of all that run are %v, %v", m, err)
	}
}

func TestCloseIO(t *testing.T) {
	b := newTaskBench(t)
	b.running(t, "c")
	stdin := func() string {
		got, err := b.Get(b.ctx, &tasksapi.GetRequest{ContainerID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		return got.Process.Stdin
	}
	if _, err := b.CloseIO(b.ctx, &tasksapi.CloseIORequest{ContainerID: "c"}); err != nil || stdin() != "in" {
		t.Errorf("CloseIO of nothing: %v, stdin %q", err, stdin())
	}
	if _, err := b.CloseIO(b.ctx, &tasksapi.CloseIORequest{ContainerID: "c", Stdin: true}); err != nil || stdin() != "" {
		t.Errorf("CloseIO of stdin: %v, stdin %q", err, stdin())
	}
}

func TestCheckpointAndRestore(t *testing.T) {
	b := newTaskBench(t)
	lease, err := b.store.Leases.Create(b.ctx, leases.WithID("test"), leases.WithExpiration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b.ctx = leases.WithLease(b.ctx, lease.ID)
	b.running(t, "c")
	b.runner.OnCheckpoint = func(cfg task.CheckpointConfig) error {
		return os.WriteFile(filepath.Join(cfg.Path, "pages"), []byte("memory"), 0o600)
	}

	inPath := t.TempDir()
	resp, err := b.Checkpoint(b.ctx, &tasksapi.CheckpointTaskRequest{
		ContainerID: "c", Options: mustAny(t, &runcoptions.CheckpointOptions{ImagePath: inPath}),
	})
	if err != nil || len(resp.Descriptors) != 0 {
		t.Fatalf("checkpoint into a directory: %v, %v", resp, err)
	}
	if _, err := os.Stat(filepath.Join(inPath, "pages")); err != nil {
		t.Error(err)
	}

	resp, err = b.Checkpoint(b.ctx, &tasksapi.CheckpointTaskRequest{ContainerID: "c"})
	if err != nil || len(resp.Descriptors) != 2 {
		t.Fatalf("checkpoint: %v, %v", resp, err)
	}
	config := resp.Descriptors[1]
	data, err := content.ReadBlob(b.ctx, b.store.Content, ocispec.Descriptor{Digest: digest.Digest(config.Digest), Size: config.Size})
	if err != nil || config.MediaType != images.MediaTypeContainerd1CheckpointConfig || !bytes.Contains(data, []byte("ociVersion")) {
		t.Errorf("stored spec is %q of %s, %v", data, config.MediaType, err)
	}

	// What an image's author wrote into the annotations changes nothing.
	resp.Descriptors[0].Annotations["RestoreFromPath"] = "/etc"
	b.record(t, "restored")
	request := &tasksapi.CreateTaskRequest{ContainerID: "restored", Checkpoint: resp.Descriptors[0]}
	if _, err := b.Create(b.ctx, request); err != nil {
		t.Fatal(err)
	}
	dir := b.config(t, "restored").Checkpoint
	if data, err := os.ReadFile(filepath.Join(dir, "pages")); err != nil || string(data) != "memory" {
		t.Errorf("restored %q, %v", data, err)
	}
	if _, err := b.Start(b.ctx, &tasksapi.StartRequest{ContainerID: "restored"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the checkpoint stays after the start: %v", err)
	}

	b.record(t, "refused")
	b.runner.OnCreate = func(task.CreateConfig) error { return errdefs.ErrUnavailable }
	request.ContainerID = "refused"
	_, err = b.Create(b.ctx, request)
	wantClass(t, "restore that fails", err, errdefs.ErrUnavailable)
	left, err := filepath.Glob(filepath.Join(b.temp, "*", "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.temp, "checkpoint-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReclaim(t *testing.T) {
	b := newTaskBench(t)
	for _, dir := range []string{"checkpoint-1", "restore/default/waits", "restore/default/gone"} {
		if err := os.MkdirAll(filepath.Join(b.temp, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.runner.Create(b.ctx, task.ID{Namespace: "default", Container: "waits"}, task.CreateConfig{}); err != nil {
		t.Fatal(err)
	}
	afterLoad, err := b.Reclaim()
	if err != nil {
		t.Fatal(err)
	}
	if err := afterLoad(b.ctx); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{"checkpoint-1": false, "restore/default/waits": true, "restore/default/gone": false} {
		if _, err := os.Stat(filepath.Join(b.temp, dir)); (err == nil) != want {
			t.Errorf("%s: %v, want kept: %v", dir, err, want)
		}
	}
}
