package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/bundle"
)

// Load takes up the tasks that Open found, all at the same time, and removes
// what crashes left. It is called once. A task that cannot be taken up costs no
// other task anything and is logged; the error is that of ctx.
func (s *Supervisor) Load(ctx context.Context) error {
	s.mu.Lock()
	var found []*Task
	for _, t := range s.tasks {
		if !t.fresh {
			found = append(found, t)
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, t := range found {
		wg.Add(1)
		err := s.work(func() {
			defer wg.Done()
			t.takeUp(s.ctx)
		})
		if err != nil {
			wg.Done()
			return err
		}
	}
	loaded := make(chan struct{})
	if err := s.work(func() {
		wg.Wait()
		close(loaded)
		if err := s.bundles.Sweep(s.leftovers); err != nil {
			s.cfg.Log.Warn("leftovers of removed tasks stay", "error", err)
		}
		s.sweepGroups()
	}); err != nil {
		return err
	}
	select {
	case <-loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takeUp makes a task ready in any case: known, gone, or broken.
func (t *Task) takeUp(ctx context.Context) {
	defer close(t.ready)
	err := t.load(ctx)
	if err == nil {
		return
	}
	if t.keeper == nil {
		t.broken = err
	}
	t.s.cfg.Log.Warn("task is not taken up", "task", t.id.String(), "error", err)
}

func (t *Task) load(ctx context.Context) error {
	if empty, err := t.bundle.Empty(); err != nil || empty || t.bundle.EarlierBoot() {
		if err == nil {
			err = t.discard()
		}
		return err
	}
	name, err := t.bundle.ReadFile(bundle.GroupFile, 64)
	switch {
	case err == nil:
		return t.loadOwn(ctx, string(name))
	case errdefs.IsNotFound(err):
		return t.loadForeign(ctx)
	}
	return err
}

// discard removes the bundle of a task that does not exist.
func (t *Task) discard() error {
	if err := t.deleteBundle(); err != nil {
		return err
	}
	t.finish()
	return nil
}

func (t *Task) loadOwn(ctx context.Context, name string) error {
	id := groupID{t.id.Namespace, name}
	key, err := t.s.storedKey(id)
	if err != nil {
		return err
	}
	if t.group, err = t.s.acquire(ctx, id, key); err != nil {
		return err
	}
	t.keeper = t.group.keeper
	err = t.recall(ctx)
	if errdefs.IsNotFound(err) {
		// It was being made or deleted when the daemon ended.
		return t.discard()
	}
	return err
}

// storedKey reads the key that a group's directory was named after. A
// directory that is lost is made anew.
func (s *Supervisor) storedKey(id groupID) (string, error) {
	if len(id.name) != 32 || strings.Trim(id.name, "0123456789abcdef") != "" {
		return "", fmt.Errorf("group %.40q has no valid name: %w", id.name, errdefs.ErrFailedPrecondition)
	}
	data, err := readBounded(filepath.Join(s.groupRoot, id.namespace, id.name, "key"))
	if errors.Is(err, unix.ENOENT) {
		if newGroupID(id.namespace, SharingNamespace) == id {
			return SharingNamespace, nil
		}
		return id.name, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the key of group %s: %w", id.name, err)
	}
	return string(data), nil
}

// recall asks the shim for the state. Silence is no error: the state stays
// unknown until the shim answers.
func (t *Task) recall(ctx context.Context) error {
	resp := &taskapi.StateResponse{}
	c := t.s.calls.state
	c.limit, c.question = t.s.cfg.Timeouts.Load, false
	err := t.keeper.call(ctx, c, &taskapi.StateRequest{ID: t.id.Container}, resp)
	if err != nil {
		return err
	}
	t.learn(stateOf(t.id, "", resp))
	return nil
}

func (t *Task) loadForeign(ctx context.Context) error {
	binary, err := t.bundle.ReadFile(bundle.ShimFile, maxPath)
	if errdefs.IsNotFound(err) {
		return t.discard() // no shim was started
	}
	if err != nil {
		return err
	}
	f := &foreign{t: t, path: string(binary)}
	if _, err := t.bundle.ReadFile(bundle.SandboxFile, maxPath); err == nil {
		f.joined = true
	}
	if err := f.openLog(); err != nil {
		return err
	}
	t.foreign = f
	f.result, err = readBootstrap(t.bundle)
	switch {
	case err == nil:
		return t.rejoin(ctx)
	case errdefs.IsNotFound(err):
		// It was being started when the daemon ended: there is no container,
		// but a shim may run. Its command knows.
		f.dismiss(ctx)
		return t.discard()
	}
	return err // no proof of anything: whoever deletes the task ends it
}

func (t *Task) rejoin(ctx context.Context) error {
	f := t.foreign
	f.keep(nil)
	err := f.greet(ctx)
	if err == nil {
		err = t.recall(ctx)
	}
	switch {
	case errors.Is(err, errDead):
		if d, err := t.begin(t.bury); err == nil {
			<-d.done // the outcome is logged by the one who noticed the death
		}
		return nil
	case errdefs.IsNotFound(err):
		f.dismiss(ctx)
		return t.discard()
	}
	return err
}

// sweepGroups looks at the groups that have no tasks. A keeper of their own
// removes the directory once their shim has ended.
func (s *Supervisor) sweepGroups() {
	dirs, err := fs.Glob(os.DirFS(s.groupRoot), "*/*")
	if err != nil {
		s.cfg.Log.Warn("groups of shims cannot be listed", "error", err)
		return
	}
	for _, dir := range dirs {
		id := groupID{namespace: path.Dir(dir), name: path.Base(dir)}
		key, err := s.storedKey(id)
		if err == nil {
			_, _, err = s.findGroup(id, key, false)
		}
		if err != nil && !errors.Is(err, errClosed) {
			s.cfg.Log.Warn("directory is not that of a group", "path", dir, "error", err)
		}
	}
}
