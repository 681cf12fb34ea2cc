package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/task"
)

// deletion is one attempt to delete a process. Its results are set before
// done is closed.
type deletion struct {
	done chan struct{}
	exit task.Exit
	err  error
}

// Delete frees an exec. See task.Process.
func (p *process) Delete(ctx context.Context) (task.Exit, error) {
	return p.join(ctx, p.deleteExec)
}

// Delete frees the task: its shim, its bundle and its id.
func (t *Task) Delete(ctx context.Context) (task.Exit, error) {
	return t.join(ctx, t.deleteTask)
}

// join starts a deletion or joins the one that is under way. It goes on when
// ctx ends.
func (p *process) join(ctx context.Context, run func(context.Context) (task.Exit, error)) (task.Exit, error) {
	if err := p.t.await(ctx); err != nil {
		return task.Exit{}, err
	}
	d, err := p.begin(run)
	if err != nil {
		return task.Exit{}, err
	}
	select {
	case <-d.done:
		return d.exit, d.err
	case <-ctx.Done():
		return task.Exit{}, fmt.Errorf("%s is still being deleted: %w", p.name(), ctx.Err())
	}
}

func (p *process) begin(run func(context.Context) (task.Exit, error)) (*deletion, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, p.stateError(task.Deleted, task.OpDelete)
	case p.del != nil:
		return p.del, nil
	}
	d := &deletion{done: make(chan struct{})}
	err := p.t.s.work(func() {
		d.exit, d.err = run(p.t.s.ctx)
		p.mu.Lock()
		p.del = nil
		p.mu.Unlock()
		close(d.done)
	})
	if err != nil {
		return nil, err
	}
	p.del = d
	return d, nil
}

// callDelete asks the shim to delete the process. A shim that was restarted
// meanwhile is asked again; if it does not know the process then, it is
// deleted, and so it is where the exit is known from before.
func (p *process) callDelete(ctx context.Context) (task.Exit, error) {
	req := &taskapi.DeleteRequest{ID: p.t.id.Container, ExecID: p.execID}
	resp := &taskapi.DeleteResponse{}
	err := p.do(ctx, task.OpDelete, p.t.s.calls.del, req, resp)
	interrupted := errors.Is(err, errInterrupted)
	if interrupted {
		resp = &taskapi.DeleteResponse{}
		err = p.do(ctx, task.OpDelete, p.t.s.calls.del, req, resp)
	}
	known := p.known()
	switch {
	case err == nil:
		return p.deleted(resp), nil
	case errdefs.IsNotFound(err) && known != nil:
		return p.settle(*known), nil
	case errdefs.IsNotFound(err) && interrupted:
		return p.settle(task.Exit{Status: 255, At: time.Now(), Reason: "the shim was restarted while it was deleted"}), nil
	}
	return task.Exit{}, err
}

// deleted records the exit as the shim gives it with a deletion. Who waits for
// a process that never ran is not told that it ended: vanish tells them; and
// the status 0 that some shims give for it is not passed on.
func (p *process) deleted(resp *taskapi.DeleteResponse) task.Exit {
	exit := p.complete(task.Exit{Pid: resp.Pid, Status: resp.ExitStatus, At: timeOf(resp.ExitedAt)})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused != nil {
		exit = *refusedExit(p.refused)
	}
	never := !p.started && p.exit == nil && p.seen == nil
	if never && exit.Status == 0 && exit.At.IsZero() {
		exit.Status, exit.Reason = 137, "it was deleted before it was started"
		if p.execID != "" {
			exit.Status = 255
		}
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	if never {
		p.seen = &exit // for a second attempt, where the bundle cannot be removed
		return exit
	}
	return p.settleLocked(exit)
}

func (p *process) deleteExec(ctx context.Context) (task.Exit, error) {
	exit, err := p.callDelete(ctx)
	if err == nil || errdefs.IsNotFound(err) {
		p.vanish()
		p.t.dropExec(p)
	}
	return exit, err
}

// deleteTask ends with the bundle gone. What fails before that leaves the
// task in the list, its exit on record, so that the caller can try again.
func (t *Task) deleteTask(ctx context.Context) (task.Exit, error) {
	if t.keeper == nil {
		return t.deleteBroken(ctx)
	}
	exit, err := t.callDelete(ctx)
	switch {
	case errors.Is(err, errDead) && t.foreign != nil:
		return t.bury(ctx)
	case err != nil && !errdefs.IsNotFound(err):
		return task.Exit{}, err
	}
	if t.foreign != nil {
		t.foreign.dismiss(ctx)
	}
	if err := t.deleteBundle(); err != nil {
		return task.Exit{}, err
	}
	t.finish()
	return exit, err
}

// deleteBroken removes a bundle from which no shim could be found. A foreign
// shim's "delete" command may still find it.
func (t *Task) deleteBroken(ctx context.Context) (task.Exit, error) {
	if t.foreign != nil {
		t.foreign.dismiss(ctx)
	}
	if err := t.deleteBundle(); err != nil {
		return task.Exit{}, err
	}
	exit := t.settle(task.Exit{Status: 255, At: time.Now(), Reason: "its shim was not found after the restart: " + t.broken.Error()})
	t.finish()
	return exit, nil
}

// finish takes the task, its bundle being gone, out of the world.
func (t *Task) finish() {
	t.vanish()
	for _, p := range t.takeExecs() {
		p.vanish()
	}
	t.s.forget(t)
	if t.group != nil {
		t.group.release()
	}
}

// bury cleans up after a foreign shim that is proven dead: its "delete"
// command kills and removes what it left, the exit and the deletion of the
// container are published, and the bundle goes. When the command fails, the
// task stays in the list as stopped, so that a later Delete, or the next
// start, runs it again: its processes may still be there.
func (t *Task) bury(ctx context.Context) (task.Exit, error) {
	resp, err := t.foreign.runDelete(ctx)
	exit := t.settle(t.epitaph(resp, err))
	for _, p := range t.takeExecs() {
		p.settle(task.Exit{Status: 255, At: exit.At, Reason: "the shim died"})
		p.vanish()
	}
	t.foreign.publishExit(exit)
	if err != nil {
		return task.Exit{}, fmt.Errorf("clean up after the dead shim of %s: %w", t.id, err)
	}
	if err := errors.Join(t.foreign.removeSockets(), t.deleteBundle()); err != nil {
		return task.Exit{}, err
	}
	t.s.publish(t.id.Namespace, "/tasks/delete", &eventsapi.TaskDelete{
		ContainerID: t.id.Container, Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At),
	})
	t.finish()
	return exit, nil
}

// epitaph is the exit of a container whose shim died: what is known of it,
// else what the "delete" command found out.
func (t *Task) epitaph(resp *taskapi.DeleteResponse, err error) task.Exit {
	if known := t.known(); known != nil {
		return *known
	}
	if err != nil {
		return task.Exit{Status: 255, At: time.Now(), Reason: "the shim died: " + err.Error()}
	}
	exit := task.Exit{Pid: resp.Pid, Status: resp.ExitStatus, At: timeOf(resp.ExitedAt)}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	return exit
}

// buryLater is called when a foreign shim has died.
func (t *Task) buryLater() {
	d, err := t.begin(t.bury)
	if err != nil {
		return // it is gone, or the supervisor closes: the next start finds it
	}
	_ = t.s.loop(func() {
		<-d.done
		switch {
		case d.err == nil || t.isGone() || t.s.ctx.Err() != nil:
		case t.foreign.reported():
			t.s.cfg.Log.Warn("dead shim is not cleaned up", "task", t.id.String(), "error", d.err)
		default:
			// It was a deletion that ended, refused, just before.
			t.buryLater()
		}
	})
}
