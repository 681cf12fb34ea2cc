package engine

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/berthd/berth/internal/faketask"
	"github.com/berthd/berth/internal/testimage"
)

// logText is a log that can be read while it is written.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// kill ends a container's task; the fake runner publishes nothing, so the
// exit event is the test's.
func kill(t *testing.T, e *Engine, c client.Container) {
	t.Helper()
	ctx := testContext(t)
	running, err := c.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := e.exchange.Publish(ctx, "/tasks/exit", &eventsapi.TaskExit{ContainerID: c.ID(), ID: c.ID()}); err != nil {
		t.Fatal(err)
	}
}

func labelled(t *testing.T, c *client.Client, id, policy string, opts ...client.NewContainerOpts) client.Container {
	t.Helper()
	ctx := testContext(t)
	opts = append(opts, client.WithNewSpec(), client.WithAdditionalContainerLabels(map[string]string{
		restart.StatusLabel: string(client.Running), restart.PolicyLabel: policy,
	}))
	container, err := c.NewContainer(ctx, id, opts...)
	if err != nil {
		t.Fatal(err)
	}
	started, err := container.NewTask(ctx, cio.NullIO)
	if err == nil {
		err = started.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return container
}

func TestRestartsWhatHasEnded(t *testing.T) {
	cfg := testConfig(t)
	runner := &faketask.Runner{}
	e := openFake(t, cfg, runner)
	ctx := testContext(t)
	c := newClient(t, e)
	always := labelled(t, c, "always", "always")
	first, err := always.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	never := labelled(t, c, "never", "no")
	kill(t, e, never)
	kill(t, e, always)
	runs := func(c client.Container, but uint32) func() bool {
		return func() bool {
			now, err := c.Task(ctx, nil)
			if err != nil || now.Pid() == but {
				return false
			}
			s, err := now.Status(ctx)
			return err == nil && s.Status == client.Running
		}
	}
	await(t, "restart", runs(always, first.Pid()))
	labels, err := always.Labels(ctx)
	if err != nil || labels[restart.CountLabel] != "1" {
		t.Errorf("labels after the restart are %v, %v", labels, err)
	}
	if s, err := mustTask(t, never).Status(ctx); err != nil || s.Status != client.Stopped {
		t.Errorf("policy no: %v, %v", s, err)
	}

	// Stopped on purpose, the label is an order.
	if err := always.Update(ctx, client.UpdateContainerOpts(client.WithAdditionalContainerLabels(
		map[string]string{restart.StatusLabel: string(client.Stopped)}))); err != nil {
		t.Fatal(err)
	}
	await(t, "stop", func() bool { _, err := always.Task(ctx, nil); return err != nil })

	// The end of the daemon is no reason to forget.
	if err := always.Update(ctx, client.UpdateContainerOpts(client.WithAdditionalContainerLabels(
		map[string]string{restart.StatusLabel: string(client.Running), restart.ExplicitlyStoppedLabel: "true"}))); err != nil {
		t.Fatal(err)
	}
	closeEngine(t, e)
	e = openFake(t, cfg, runner)
	if always, err = newClient(t, e).LoadContainer(ctx, "always"); err != nil {
		t.Fatal(err)
	}
	await(t, "start after the engine's", runs(always, 0))
}

func mustTask(t *testing.T, c client.Container) client.Task {
	t.Helper()
	found, err := c.Task(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// An image that brings a log URI for the restart monitor would choose a program
// that the daemon runs.
func TestRestartLogOfAnImage(t *testing.T) {
	log := &logText{}
	cfg := testConfig(t)
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	e := openFake(t, cfg, &faketask.Runner{})
	ctx := testContext(t)
	c := newClient(t, e)
	uri := "binary:///bin/sh"
	f, err := os.Open(testimage.Archive(t, "berth.test/evil:1", testimage.Config{Labels: map[string]string{restart.LogURILabel: uri}}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := c.Import(ctx, f); err != nil {
		t.Fatal(err)
	}
	img, err := c.GetImage(ctx, "berth.test/evil:1")
	if err != nil {
		t.Fatal(err)
	}
	container := labelled(t, c, "evil", "always", client.WithImage(img),
		client.WithAdditionalContainerLabels(map[string]string{restart.LogURILabel: uri}))
	kill(t, e, container)
	await(t, "refusal", func() bool { return strings.Contains(log.String(), "may not choose where a log goes") })
	if s, err := mustTask(t, container).Status(ctx); err != nil || s.Status != client.Stopped {
		t.Errorf("the task is %v, %v, want it stopped", s, err)
	}
}
