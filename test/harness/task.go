package harness

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// taskLine returns pid and status of a task as `ctr tasks ls` lists them.
func (d *Daemon) taskLine(tb testing.TB, id string) (pid, status string) {
	tb.Helper()
	for line := range strings.Lines(d.MustCtr(tb, "tasks", "ls")) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == id {
			return fields[1], fields[2]
		}
	}
	return "", ""
}

// TaskStatus returns the status of a task as `ctr tasks ls` lists it, RUNNING
// for example; nothing when there is no such task.
func (d *Daemon) TaskStatus(tb testing.TB, id string) string {
	tb.Helper()
	_, status := d.taskLine(tb, id)
	return status
}

// TaskPID returns the pid of a task as `ctr tasks ls` lists it.
func (d *Daemon) TaskPID(tb testing.TB, id string) int {
	tb.Helper()
	text, _ := d.taskLine(tb, id)
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 {
		tb.Fatalf("pid of the task %s: %q", id, text)
	}
	return pid
}

// AwaitStatus waits until a task has the status.
func (d *Daemon) AwaitStatus(tb testing.TB, id, status string) {
	tb.Helper()
	last := ""
	if !Poll(30*time.Second, func() bool { last = d.TaskStatus(tb, id); return last == status }) {
		tb.Fatalf("task %s is %q, want %q", id, last, status)
	}
}

// WaitTask begins to wait for a task. The function that it returns gives the
// exit code.
func (d *Daemon) WaitTask(tb testing.TB, id string) func() int {
	tb.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), commandLimit)
	tb.Cleanup(cancel)
	task := d.task(ctx, tb, id)
	exits, err := task.Wait(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return func() int {
		tb.Helper()
		exit := <-exits
		code, _, err := exit.Result()
		if err != nil {
			tb.Fatalf("wait for %s: %v", id, err)
		}
		return int(code)
	}
}

func (d *Daemon) task(ctx context.Context, tb testing.TB, id string) containerd.Task {
	tb.Helper()
	container, err := d.Client(tb).LoadContainer(ctx, id)
	if err != nil {
		tb.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return task
}
