package restart

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/runtime/restart"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
)

// verdict is what a look at a container came to.
type verdict int

const (
	fine      verdict = iota // nothing is to be done
	unwatched                // it has no such labels
	later                    // it is to be looked at again after a while
	started                  // it was restarted
)

type finding struct {
	verdict verdict
	wait    time.Duration // with later
	lasted  bool          // with started: the run before was a long one
}

// look compares a container with its labels and does what they ask for.
func (m *Monitor) look(ctx context.Context, k key, settled bool, before history) (finding, error) {
	c, err := m.cfg.Client.LoadContainer(ctx, k.id)
	if errdefs.IsNotFound(err) {
		return finding{verdict: unwatched}, nil
	}
	if err != nil {
		return finding{}, err
	}
	labels, err := c.Labels(ctx)
	if err != nil {
		return finding{}, err
	}
	desired := client.ProcessStatus(labels[restart.StatusLabel])
	if desired == "" {
		return finding{verdict: unwatched}, nil
	}
	t, status, err := stateOf(ctx, c)
	if err != nil {
		return finding{}, err
	}
	switch desired {
	case client.Stopped:
		if t == nil || status.Status == client.Stopped {
			return finding{}, nil
		}
		return finding{}, end(ctx, t)
	case client.Running:
		return m.keepRunning(ctx, c, t, status, labels, settled, before)
	}
	return finding{}, nil
}

// stateOf returns a nil task where there is none.
func stateOf(ctx context.Context, c client.Container) (client.Task, client.Status, error) {
	t, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil, client.Status{}, nil
	}
	if err != nil {
		return nil, client.Status{}, err
	}
	status, err := t.Status(ctx)
	if errdefs.IsNotFound(err) {
		return nil, client.Status{}, nil
	}
	return t, status, err
}

// keepRunning restarts a container that shall run. A task that is missing, or
// created and not started, is left alone until it has settled.
func (m *Monitor) keepRunning(ctx context.Context, c client.Container, t client.Task, status client.Status, labels map[string]string, settled bool, before history) (finding, error) {
	switch status.Status {
	case client.Running, client.Paused, client.Pausing:
		return finding{}, nil
	}
	if !restart.Reconcile(status, labels) {
		return finding{}, nil
	}
	stopped := status.Status == client.Stopped
	if !stopped && !settled {
		return finding{verdict: later, wait: m.cfg.Settle}, nil
	}
	notBefore, lasted := before.notBefore, true
	if stopped {
		fails := before.fails
		if lasted = status.ExitTime.Sub(before.started) > m.cfg.Lasting; lasted {
			fails = 0
		}
		if due := status.ExitTime.Add(m.delay(fails)); due.After(notBefore) {
			notBefore = due
		}
	}
	if wait := time.Until(notBefore); wait > 0 {
		return finding{verdict: later, wait: wait}, nil
	}
	if err := start(ctx, c, t, labels); err != nil {
		return finding{}, err
	}
	return finding{verdict: started, lasted: lasted}, nil
}

// start runs the container anew, after what is left of its last run is gone.
func start(ctx context.Context, c client.Container, t client.Task, labels map[string]string) error {
	streams, err := streamsOf(ctx, c, labels[restart.LogURILabel])
	if err != nil {
		return err
	}
	count, _ := strconv.Atoi(labels[restart.CountLabel]) // none is 0
	err = c.Update(ctx, client.UpdateContainerOpts(client.WithAdditionalContainerLabels(
		map[string]string{restart.CountLabel: strconv.Itoa(count + 1)})))
	if err != nil {
		return fmt.Errorf("count the restart: %w", err)
	}
	if t != nil {
		if err := end(ctx, t); err != nil {
			return err
		}
	}
	if t, err = c.NewTask(ctx, streams); err != nil {
		return err
	}
	if err := t.Start(ctx); err != nil {
		_, derr := t.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		if derr != nil && !errdefs.IsNotFound(derr) {
			return fmt.Errorf("%w; deleting the task failed too: %w", err, derr)
		}
		return err
	}
	// Its record may have been deleted while there was no task: nobody would look
	// for this one.
	if _, err := c.Labels(ctx); errdefs.IsNotFound(err) {
		return end(context.WithoutCancel(ctx), t)
	}
	return nil
}

// streamsOf says where the output goes: to the URI of the label, else nowhere.
// A URI that the image brought is refused: it names a file or a program of the
// host, and older clients copy an image's labels to the container.
func streamsOf(ctx context.Context, c client.Container, uri string) (cio.Creator, error) {
	if uri == "" {
		return cio.NullIO, nil
	}
	if image, err := c.Image(ctx); err == nil {
		spec, err := image.Spec(ctx)
		if err != nil {
			return nil, fmt.Errorf("labels of the image: %w", err)
		}
		if _, there := spec.Config.Labels[restart.LogURILabel]; there {
			return nil, fmt.Errorf("label %s comes from the image, which may not choose where a log goes; remove it from the container: %w",
				restart.LogURILabel, errdefs.ErrPermissionDenied)
		}
	} else if !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("labels of the image: %w", err)
	}
	target, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("label %s: %w", restart.LogURILabel, err)
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	if spec.Process != nil && spec.Process.Terminal {
		return cio.TerminalLogURI(target), nil
	}
	return cio.LogURI(target), nil
}

// end kills all of a task's processes, waits for its exit and deletes it.
func end(ctx context.Context, t client.Task) error {
	exited, err := t.Wait(ctx)
	if err == nil {
		if err = t.Kill(ctx, syscall.SIGKILL, client.WithKillAll); err == nil {
			select {
			case <-exited:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	// It may have ended or be gone by itself: then the delete says so.
	_, derr := t.Delete(ctx)
	switch {
	case derr == nil || errdefs.IsNotFound(derr):
		return nil
	case err != nil:
		return err
	}
	return derr
}
