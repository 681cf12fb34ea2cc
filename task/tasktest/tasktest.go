// Package tasktest is the test of a task.Runner: one suite for all of them,
// from the package that calls the OCI runtime to the client of the daemon. The
// life-cycle table of package task is its oracle.
package tasktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// Harness is a Runner under test and what it needs to run something.
type Harness interface {
	Runner() task.Runner
	// Namespace is where the suite's tasks live.
	Namespace() string
	// Config describes a container whose init process is /bin/sh -c script.
	Config(t *testing.T, id, script string) task.CreateConfig
	// Exec describes a process /bin/sh -c script for such a container.
	Exec(t *testing.T, script string) task.ExecConfig
	// Events returns what the Runner has published so far, in order, or nil
	// where the harness cannot see events.
	Events() []task.Event
}

// Checkpointer is a Harness whose Runner can checkpoint.
type Checkpointer interface {
	// Image returns the directory of a checkpoint that any container of this
	// Harness can be restored from.
	Image(t *testing.T) string
}

// Meter is a Harness whose containers have statistics.
type Meter interface{ HasStats() bool }

// timeout bounds each step.
const timeout = 30 * time.Second

// Forever is a script that runs until it is killed.
const Forever = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

// Run runs the whole suite. newHarness is called for each test.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	for name, fn := range map[string]func(*testing.T, *suite){
		"InitTable":             testInitTable,
		"ExecTable":             testExecTable,
		"ExitStatus":            testExitStatus,
		"ExitBeforeStartEnds":   testQuickExit,
		"Signals":               testSignals,
		"WaitersAllReturn":      testWaiters,
		"DeleteCreated":         testDeleteCreated,
		"DeleteAtOnce":          testDeleteAtOnce,
		"ExecStatus":            testExecStatus,
		"ExecStartFails":        testExecStartFails,
		"ExecsEndWithContainer": testExecsEnd,
		"Names":                 testNames,
		"KillAll":               testKillAll,
		"CreateFails":           testCreateFails,
	} {
		t.Run(name, func(t *testing.T) {
			s := &suite{T: t, Harness: newHarness(t)}
			t.Cleanup(s.cleanup)
			fn(t, s)
			if events := s.Events(); events != nil {
				CheckEvents(t, events)
			}
		})
	}
}

type suite struct {
	*testing.T
	Harness
	n     int
	tasks []task.Task
}

func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	s.Cleanup(cancel)
	return ctx
}

func (s *suite) id(name string) task.ID { return task.ID{Namespace: s.Namespace(), Container: name} }

// create makes a container with a new id.
func (s *suite) create(script string) task.Task {
	s.T.Helper()
	return s.createFrom("", script)
}

func (s *suite) createFrom(image, script string) task.Task {
	s.T.Helper()
	s.n++
	id := fmt.Sprintf("c%d", s.n)
	cfg := s.Config(s.T, id, script)
	cfg.Checkpoint = image
	c, err := s.Runner().Create(s.ctx(), s.id(id), cfg)
	if err != nil {
		s.Fatalf("create: %v", err)
	}
	s.tasks = append(s.tasks, c)
	return c
}

func (s *suite) start(p task.Process) uint32 {
	s.T.Helper()
	pid, err := p.Start(s.ctx())
	if err != nil {
		s.Fatalf("start: %v", err)
	}
	return pid
}

func (s *suite) wait(p task.Process) task.Exit {
	s.T.Helper()
	exit, err := p.Wait(s.ctx())
	if err != nil {
		s.Fatalf("wait: %v", err)
	}
	return exit
}

func (s *suite) run(script string) task.Task {
	s.T.Helper()
	c := s.create(script)
	s.start(c)
	return c
}

func (s *suite) exec(c task.Task, id, script string) task.Process {
	s.T.Helper()
	p, err := c.Exec(s.ctx(), id, s.Exec(s.T, script))
	if err != nil {
		s.Fatalf("exec: %v", err)
	}
	return p
}

// cleanup ends and deletes whatever a test has left, from whatever state.
func (s *suite) cleanup() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for _, c := range s.tasks {
		st, err := c.State(ctx)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err == nil && (st.Status == task.Running || st.Status == task.Paused) {
			if err := c.Kill(ctx, syscall.SIGKILL, true); err == nil {
				if _, err := c.Wait(ctx); err != nil {
					s.Errorf("wait for %s at the end: %v", c.ID(), err)
				}
			}
		}
		if _, err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
			s.Errorf("delete %s at the end: %v", c.ID(), err)
		}
	}
}

// bring makes a process that is in the state.
func (s *suite) bring(kind task.Kind, status task.Status) (task.Task, task.Process) {
	s.T.Helper()
	ctx := s.ctx()
	if status == task.CreatedCheckpoint {
		c := s.createFrom(s.Harness.(Checkpointer).Image(s.T), Forever)
		return c, c
	}
	c := s.create(Forever)
	var p task.Process = c
	if kind == task.Exec {
		s.start(c)
		p = s.exec(c, "e", Forever)
	}
	if status == task.Created {
		return c, p
	}
	s.start(p)
	var err error
	switch status {
	case task.Paused:
		err = c.Pause(ctx)
	case task.Stopped, task.Deleted:
		err = p.Kill(ctx, syscall.SIGKILL, false)
		if err == nil {
			s.wait(p)
		}
		if err == nil && status == task.Deleted {
			_, err = p.Delete(ctx)
		}
	}
	if err != nil {
		s.Fatalf("bring a process to state %s: %v", status, err)
	}
	return c, p
}

// apply asks for an operation. asked is false for what is not asked but happens.
func (s *suite) apply(c task.Task, p task.Process, op task.Operation) (asked bool, err error) {
	ctx := s.ctx()
	switch op {
	case task.OpStart:
		_, err = p.Start(ctx)
	case task.OpDelete:
		_, err = p.Delete(ctx)
	case task.OpKill:
		err = p.Kill(ctx, syscall.Signal(0), false)
	case task.OpPause:
		err = c.Pause(ctx)
	case task.OpResume:
		err = c.Resume(ctx)
	case task.OpUpdate:
		err = c.Update(ctx, task.Any{
			TypeURL: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
			Value:   []byte(`{"memory":{"limit":268435456}}`),
		}, nil)
	case task.OpCheckpoint:
		if _, can := s.Harness.(Checkpointer); !can {
			return false, nil
		}
		err = c.Checkpoint(ctx, task.CheckpointConfig{Path: s.T.TempDir()})
	case task.OpStats:
		if m, can := s.Harness.(Meter); !can || !m.HasStats() {
			return false, nil
		}
		_, err = c.Stats(ctx)
	case task.OpExec:
		_, err = c.Exec(ctx, "new", s.Exec(s.T, "true"))
	case task.OpPids:
		_, err = c.Pids(ctx)
	case task.OpResize:
		err = p.Resize(ctx, task.ConsoleSize{Width: 80, Height: 24})
	case task.OpCloseStdin:
		err = p.CloseStdin(ctx)
	case task.OpState:
		_, err = p.State(ctx)
	case task.OpWait:
		// A process that runs keeps its waiters: that they wait is the answer.
		wctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err = p.Wait(wctx)
		// The other end may come to the deadline before this one.
		if err != nil && (wctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)) && !errdefs.IsNotFound(err) {
			err = nil
		}
	default:
		return false, nil
	}
	return true, err
}

var containerOnly = map[task.Operation]bool{
	task.OpPause: true, task.OpResume: true, task.OpUpdate: true, task.OpExec: true, task.OpPids: true,
	task.OpCheckpoint: true, task.OpStats: true,
}

func testTable(s *suite, kind task.Kind) {
	for _, from := range task.States(kind) {
		if _, can := s.Harness.(Checkpointer); from == task.CreatedCheckpoint && !can {
			continue
		}
		for _, op := range task.Operations() {
			if kind == task.Exec && containerOnly[op] {
				continue
			}
			s.T.Run(from.String()+"/"+op.String(), func(t *testing.T) {
				sub := &suite{T: t, Harness: s.Harness, n: s.n}
				defer func() { s.n = sub.n }()
				t.Cleanup(sub.cleanup)
				sub.checkCell(kind, from, op)
			})
		}
	}
}

// checkCell holds one cell of the table against the Runner.
func (s *suite) checkCell(kind task.Kind, from task.Status, op task.Operation) {
	want, refusal := task.Next(kind, from, op)
	c, p := s.bring(kind, from)
	asked, err := s.apply(c, p, op)
	if !asked {
		return
	}
	switch {
	case refusal == nil && err != nil:
		s.Errorf("%s in state %s: %v", op, from, err)
	case refusal != nil && err == nil:
		s.Errorf("%s in state %s was not refused", op, from)
	case errdefs.IsNotFound(refusal) && !errdefs.IsNotFound(err):
		s.Errorf("%s in state %s: %v, want NotFound", op, from, err)
	case errdefs.IsFailedPrecondition(refusal) && !errdefs.IsFailedPrecondition(err):
		s.Errorf("%s in state %s: %v, want FailedPrecondition", op, from, err)
	}
	if want == task.Deleted {
		if _, err := p.State(s.ctx()); !errdefs.IsNotFound(err) {
			s.Errorf("state after %s in state %s: %v, want NotFound", op, from, err)
		}
		return
	}
	st, err := p.State(s.ctx())
	if want == task.CreatedCheckpoint && st.Status == task.Created {
		st.Status = want // all that goes over the wire
	}
	if err != nil || st.Status != want {
		s.Errorf("after %s in state %s the state is %s (%v), want %s", op, from, st.Status, err, want)
	}
}

func testInitTable(_ *testing.T, s *suite) { testTable(s, task.Init) }
func testExecTable(_ *testing.T, s *suite) { testTable(s, task.Exec) }

// concurrently runs fn n times at once and returns the errors.
func concurrently(n int, fn func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
