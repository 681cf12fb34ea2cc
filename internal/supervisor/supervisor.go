package supervisor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/admit"
	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
)

// cleanups bounds the shim binaries that run "delete" at a time.
const cleanups = 8

// Supervisor makes, finds and keeps tasks. It is a task.Runner.
type Supervisor struct {
	cfg       Config
	calls     calls
	bundles   *bundle.Store
	sandboxes *Sandboxes
	groupRoot string
	infos     *infoCache
	gate      *admit.Gate
	cleaners  chan struct{} // see cleanups
	leftovers []bundle.Leftover

	// ctx ends when the supervisor closes.
	ctx    context.Context
	cancel context.CancelFunc
	// loops last as long as ctx; works end by themselves and are waited for
	// first.
	loops, works sync.WaitGroup

	mu      sync.Mutex
	closing bool               // guarded by mu
	tasks   map[task.ID]*Task  // guarded by mu
	groups  map[groupID]*group // guarded by mu
}

// Open reads which tasks there are. It talks to no shim: that is what
// [Supervisor.Load] does. One process may use the directories at a time; the
// caller sees to that. The caller closes the supervisor.
func Open(ctx context.Context, cfg Config) (*Supervisor, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	bundles, err := bundle.Open(cfg.State, cfg.Root)
	if err != nil {
		return nil, err
	}
	ids, left, err := bundles.Scan()
	if err != nil {
		bundles.Close()
		return nil, err
	}
	s := &Supervisor{
		cfg: cfg, calls: newCalls(cfg.Timeouts), bundles: bundles, leftovers: left,
		groupRoot: filepath.Join(cfg.State, groupSubdir),
		infos:     newInfoCache(),
		gate:      &admit.Gate{Policy: cfg.SpecCheck},
		cleaners:  make(chan struct{}, cleanups),
		tasks:     make(map[task.ID]*Task, len(ids)),
		groups:    make(map[groupID]*group),
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if s.sandboxes, err = openSandboxes(s); err != nil {
		s.cancel()
		bundles.Close()
		return nil, err
	}
	for _, id := range ids {
		b, err := bundles.Load(id)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			s.cancel()
			s.sandboxes.close()
			bundles.Close()
			return nil, err
		}
		s.tasks[id] = newTask(s, id, b)
	}
	return s, nil
}

// Get finds a task. One that is still being taken up after a restart is
// waited for, within Timeouts.Load.
func (s *Supervisor) Get(ctx context.Context, id task.ID) (task.Task, error) {
	t := s.find(id)
	if t == nil {
		return nil, notFound(id)
	}
	if err := t.await(ctx); err != nil {
		return nil, err
	}
	if t.isGone() {
		return nil, notFound(id)
	}
	return t, nil
}

// find returns nil when there is no such task, or it is still being made.
func (s *Supervisor) find(id task.ID) *Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tasks[id]; t != nil && !t.creating() {
		return t
	}
	return nil
}

func notFound(id task.ID) error {
	return fmt.Errorf("task %q: %w", id.Container, errdefs.ErrNotFound)
}

// List returns the tasks of a namespace ordered by id, those included that
// are still being taken up.
func (s *Supervisor) List(_ context.Context, namespace string) ([]task.Task, error) {
	var found []task.Task
	s.mu.Lock()
	for id, t := range s.tasks {
		if id.Namespace == namespace && !t.creating() {
			found = append(found, t)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(found, func(a, b task.Task) int {
		return strings.Compare(a.ID().Container, b.ID().Container)
	})
	return found, nil
}

// reserve takes an id for a task that is to be made. An earlier task of that
// id that is still being taken up is waited for.
func (s *Supervisor) reserve(ctx context.Context, id task.ID) (*Task, error) {
	for {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			return nil, errClosed
		}
		old := s.tasks[id]
		if old == nil {
			t := newTask(s, id, nil)
			s.tasks[id] = t
			s.mu.Unlock()
			return t, nil
		}
		s.mu.Unlock()
		taken := fmt.Errorf("task %q: %w", id.Container, errdefs.ErrAlreadyExists)
		if old.creating() {
			return nil, taken
		}
		if err := old.await(ctx); err != nil {
			return nil, err
		}
		if !old.isGone() {
			return nil, taken
		}
		s.forget(old)
	}
}

// forget takes a task out of the list. It is idempotent.
func (s *Supervisor) forget(t *Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tasks[t.id] == t {
		delete(s.tasks, t.id)
	}
}

// work runs f, which has to end by itself, unless the supervisor closes.
func (s *Supervisor) work(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosed
	}
	s.works.Go(f)
	return nil
}

// loop runs f, which has to end when s.ctx does.
func (s *Supervisor) loop(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosed
	}
	s.loops.Go(f)
	return nil
}

// Close lets what is under way come to its end, within ctx, and closes the
// connections. Shims and containers go on; a later supervisor on the same
// directories takes them up.
func (s *Supervisor) Close(ctx context.Context) error {
	s.mu.Lock()
	closed := s.closing
	s.closing = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	worked := make(chan struct{})
	go func() {
		s.works.Wait()
		close(worked)
	}()
	var err error
	select {
	case <-worked:
	case <-ctx.Done():
		err = fmt.Errorf("tasks were still being created or deleted; they are taken up again at the next start: %w", ctx.Err())
	}
	s.cancel()
	<-worked
	s.sandboxes.close()
	s.loops.Wait()
	s.bundles.Close()
	return err
}

// publish hands an event to the daemon's subscribers.
func (s *Supervisor) publish(namespace, topic string, event any) {
	if s.cfg.Publisher == nil {
		return
	}
	ctx := namespaces.WithNamespace(s.ctx, namespace)
	if err := s.cfg.Publisher.Publish(ctx, topic, event); err != nil {
		s.cfg.Log.Error("event of a task is lost", "topic", topic, "namespace", namespace, "error", err)
	}
}
