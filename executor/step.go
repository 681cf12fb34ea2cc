package executor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/util/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// step is one call of Run. What has no guard belongs to that call; Exec reads
// it once running is closed.
type step struct {
	id   string
	dir  string // hosts, resolv.conf
	root *rootfs
	net  network.Namespace
	spec *specs.Spec
	// dropped are mount points that a rootless spec lost.
	dropped []string
	exited  bool // its program was seen to end
	undo    undo

	running chan struct{} // closed when its program runs
	ended   chan struct{} // closed when it has ended, before anything is undone
	gone    chan struct{} // closed when nothing is left

	execs sync.WaitGroup

	mu  sync.Mutex
	end bool  // guarded by mu: ended is closed
	err error // guarded by mu: why it ended
}

// register takes an id. One whose step has returned but is not gone yet is
// waited for.
func (e *Executor) register(ctx context.Context, id string) (*step, error) {
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return nil, fmt.Errorf("the executor is closed: %w", errdefs.ErrUnavailable)
		}
		old := e.steps[id]
		if old == nil {
			s := &step{id: id, running: make(chan struct{}), ended: make(chan struct{}), gone: make(chan struct{})}
			e.steps[id] = s
			e.mu.Unlock()
			return s, nil
		}
		e.mu.Unlock()
		select {
		case <-old.ended:
		default:
			return nil, fmt.Errorf("step %s runs already: %w", id, errdefs.ErrAlreadyExists)
		}
		select {
		case <-old.gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// stop refuses further execs of the step; err is what they are told.
func (s *step) stop(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.end {
		s.end, s.err = true, err
		close(s.ended)
	}
}

// addExec counts an exec in, which ends with execs.Done.
func (s *step) addExec() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.end {
		s.execs.Add(1)
		return nil
	}
	if s.err != nil {
		return fmt.Errorf("step %s has ended: %w", s.id, s.err)
	}
	return fmt.Errorf("step %s has ended: %w", s.id, errdefs.ErrFailedPrecondition)
}

// awaitExecs waits for the execs of a step whose init is dead, and so theirs;
// what holds them up can only be a stream that nobody reads.
func (s *step) awaitExecs(limit time.Duration) {
	done := make(chan struct{})
	go func() { // ends with the last exec
		defer close(done)
		s.execs.Wait()
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// finish lets the id go. A container record is removed in the background: it
// says nothing any more, and costs a transaction on disk.
func (e *Executor) finish(s *step, err error) {
	s.stop(err)
	e.mu.Lock()
	defer e.mu.Unlock()
	forget := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.steps, s.id)
		close(s.gone)
	}
	if s.undo.last == nil {
		delete(e.steps, s.id)
		close(s.gone)
		return
	}
	e.records.Go(func() {
		defer forget()
		s.undo.last()
	})
}

// undo is what a step has to release, last first.
type undo struct {
	steps []release
	// last may wait until Run has returned; it logs its errors.
	last func()
}

type release struct {
	name string
	f    func(context.Context) error
}

func (u *undo) add(name string, f func(context.Context) error) {
	u.steps = append(u.steps, release{name, f})
}

// run releases all, whatever fails, and whatever becomes of the context.
func (u *undo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].f(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.steps[i].name, err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}

// useProxy puts a proxy's certificate into the root file system for as long as
// the step runs, and returns the environment with the proxy's variables.
func useProxy(s *step, env []string) ([]string, error) {
	proxy, ok := s.net.(network.ProxyNamespace)
	if !ok {
		return env, nil
	}
	clean, err := executor.InjectProxyCA(s.root.path, proxy.ProxyCACert())
	if err != nil {
		return nil, err
	}
	s.undo.add("proxy certificate", func(context.Context) error { return clean() })
	return executor.ReplaceEnv(env, proxy.ProxyEnv()), nil
}
