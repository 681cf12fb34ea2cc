package tasktest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

func testExitStatus(t *testing.T, s *suite) {
	for _, code := range []uint32{0, 1, 42, 127, 255} {
		before := time.Now()
		c := s.run(fmt.Sprintf("exit %d", code))
		exit := s.wait(c)
		if exit.Status != code {
			t.Errorf("exit %d was reported as %+v", code, exit)
		}
		if exit.At.Before(before.Add(-time.Second)) || exit.At.After(time.Now().Add(time.Second)) {
			t.Errorf("exit %d at %s, run at %s", code, exit.At, before)
		}
		got, err := c.Delete(s.ctx())
		if err != nil || got.Status != code {
			t.Errorf("delete after exit %d: %+v, %v", code, got, err)
		}
	}
}

func testQuickExit(t *testing.T, s *suite) {
	for i := range 10 {
		c := s.run(fmt.Sprintf("exit %d", i))
		if exit := s.wait(c); exit.Status != uint32(i) {
			t.Errorf("exit %d was reported as %+v", i, exit)
		}
	}
}

func testSignals(t *testing.T, s *suite) {
	for sig, want := range map[syscall.Signal]uint32{syscall.SIGKILL: 137, syscall.SIGTERM: 43, syscall.SIGUSR1: 44} {
		c := s.create("trap 'exit 43' TERM; trap 'exit 44' USR1; while :; do sleep 0.05; done")
		waitForTraps(t, s.start(c), syscall.SIGTERM, syscall.SIGUSR1)
		if err := c.Kill(s.ctx(), sig, false); err != nil {
			t.Fatalf("kill %d: %v", sig, err)
		}
		if exit := s.wait(c); exit.Status != want {
			t.Errorf("signal %d: %+v, want status %d", sig, exit, want)
		}
		if err := c.Kill(s.ctx(), sig, false); !errdefs.IsNotFound(err) {
			t.Errorf("signal %d to a process that has ended: %v, want NotFound", sig, err)
		}
	}
}

// waitForTraps waits until the process catches the signals: the kernel shows
// that in /proc, as a mask, whatever runs the process.
func waitForTraps(t *testing.T, pid uint32, signals ...syscall.Signal) {
	t.Helper()
	var want uint64
	for _, sig := range signals {
		want |= 1 << (sig - 1)
	}
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatalf("the process has ended before its signal: %v", err)
		}
		_, rest, _ := strings.Cut(string(data), "\nSigCgt:")
		line, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		caught, err := strconv.ParseUint(line, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		// A runtime written in Go that has not exec'd yet catches everything.
		if urgent := uint64(1) << (syscall.SIGURG - 1); caught&want == want && caught&urgent == 0 {
			return
		}
	}
	t.Fatalf("process %d does not catch %v", pid, signals)
}

func testWaiters(t *testing.T, s *suite) {
	c := s.run(Forever)
	got := make(chan task.Exit, 20)
	for range cap(got) {
		go func() {
			e, err := c.Wait(s.ctx())
			if err != nil {
				t.Errorf("wait: %v", err)
			}
			got <- e
		}()
	}
	if err := c.Kill(s.ctx(), syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	for range cap(got) {
		if e := <-got; e.Status != 137 {
			t.Errorf("%+v", e)
		}
	}
}

// A Wait on a container that is deleted before it is started returns.
func testDeleteCreated(t *testing.T, s *suite) {
	c := s.create(Forever)
	got := make(chan error, 1)
	go func() {
		e, err := c.Wait(s.ctx())
		if err == nil && e.Status == 0 {
			err = fmt.Errorf("status 0 of a container that never ran")
		}
		got <- err
	}()
	exit, err := c.Delete(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if exit.Status == 0 || exit.At.IsZero() {
		t.Errorf("delete: %+v", exit)
	}
	if err := <-got; err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("wait: %v", err)
	}
}

// Deletes at the same time all succeed, or find nothing any more.
func testDeleteAtOnce(t *testing.T, s *suite) {
	c := s.run("exit 5")
	s.wait(c)
	ok := make(chan task.Exit, 8)
	err := concurrently(cap(ok), func(int) error {
		exit, err := c.Delete(s.ctx())
		if err == nil {
			ok <- exit
		}
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(ok) == 0 {
		t.Fatal("no delete succeeded")
	}
	for range len(ok) {
		if e := <-ok; e.Status != 5 {
			t.Errorf("%+v", e)
		}
	}
	if _, err := s.Runner().Get(s.ctx(), c.ID()); !errdefs.IsNotFound(err) {
		t.Errorf("get after delete: %v", err)
	}
}

func testExecStatus(t *testing.T, s *suite) {
	c := s.run(Forever)
	err := concurrently(8, func(i int) error {
		p, err := c.Exec(s.ctx(), fmt.Sprintf("e%d", i), s.Exec(t, fmt.Sprintf("exit %d", i)))
		if err != nil {
			return err
		}
		pid, err := p.Start(s.ctx())
		if err != nil {
			return err
		}
		exit, err := p.Wait(s.ctx())
		if err == nil && (exit.Status != uint32(i) || exit.Pid != pid && exit.Pid != 0) {
			err = fmt.Errorf("exec %d with pid %d: %+v", i, pid, exit)
		}
		if err != nil {
			return err
		}
		got, err := p.Delete(s.ctx())
		if err == nil && got.Status != uint32(i) {
			err = fmt.Errorf("delete of exec %d: %+v", i, got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Process(s.ctx(), "e1"); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted exec: %v", err)
	}
}

func testExecStartFails(t *testing.T, s *suite) {
	c := s.run(Forever)
	cfg := s.Exec(t, "true")
	cfg.Spec = []byte(`{"args":["/no/such/program"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}`)
	p, err := c.Exec(s.ctx(), "e", cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Start(s.ctx()); err == nil {
		t.Fatal("a program that is not there was started")
	}
	if e, err := p.Wait(s.ctx()); err == nil && e.Status == 0 {
		t.Errorf("status 0 of an exec that never started")
	}
	if _, err := p.Start(s.ctx()); err == nil {
		t.Errorf("a second start succeeded")
	}
	if _, err := p.Delete(s.ctx()); err != nil {
		t.Errorf("delete: %v", err)
	}
	st, err := c.State(s.ctx())
	if err != nil || st.Status != task.Running {
		t.Errorf("the container is %s (%v)", st.Status, err)
	}
}

// Execs end with their container; their exits are known before its own is.
func testExecsEnd(t *testing.T, s *suite) {
	c := s.run(Forever)
	p := s.exec(c, "e", Forever)
	s.start(p)
	if err := c.Kill(s.ctx(), syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	s.wait(c)
	st, err := p.State(s.ctx())
	if err != nil || st.Status != task.Stopped {
		t.Errorf("the exec is %s (%v) after its container's exit", st.Status, err)
	}
	if _, err := c.Exec(s.ctx(), "late", s.Exec(t, "true")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in a container that has ended: %v", err)
	}
}

func testNames(t *testing.T, s *suite) {
	if _, err := s.Runner().Get(s.ctx(), s.id("nobody")); !errdefs.IsNotFound(err) {
		t.Errorf("get of an unknown id: %v", err)
	}
	c := s.run(Forever)
	id := c.ID().Container
	if _, err := s.Runner().Create(s.ctx(), c.ID(), s.Config(t, id, Forever)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create with a taken id: %v", err)
	}
	if _, err := c.Process(s.ctx(), "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown exec: %v", err)
	}
	s.exec(c, "e", "true")
	if _, err := c.Exec(s.ctx(), "e", s.Exec(t, "true")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("exec with a taken id: %v", err)
	}
	list, err := s.Runner().List(s.ctx(), s.Namespace())
	if err != nil || len(list) != 1 || list[0].ID() != c.ID() {
		t.Errorf("list: %v, %v", list, err)
	}
	if list, err := s.Runner().List(s.ctx(), "another"); err != nil || len(list) != 0 {
		t.Errorf("list of another namespace: %v, %v", list, err)
	}
}

func testKillAll(t *testing.T, s *suite) {
	c := s.run(Forever)
	p := s.exec(c, "e", Forever)
	s.start(p)
	if err := c.Kill(s.ctx(), syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if e := s.wait(p); e.Status != 137 {
		t.Errorf("exec: %+v", e)
	}
	if e := s.wait(c); e.Status != 137 {
		t.Errorf("init: %+v", e)
	}
}

// A create that fails leaves nothing: the id is free at once.
func testCreateFails(t *testing.T, s *suite) {
	cfg := s.Config(t, "again", Forever)
	bad := cfg
	bad.Stdio.Stdout = "nonsense://x"
	if _, err := s.Runner().Create(s.ctx(), s.id("again"), bad); err == nil {
		t.Fatal("an unknown stdio scheme was accepted")
	}
	if _, err := s.Runner().Get(s.ctx(), s.id("again")); !errdefs.IsNotFound(err) {
		t.Errorf("get after a failed create: %v", err)
	}
	c, err := s.Runner().Create(s.ctx(), s.id("again"), s.Config(t, "again", "exit 3"))
	if err != nil {
		t.Fatalf("create again: %v", err)
	}
	s.tasks = append(s.tasks, c)
	s.start(c)
	if e := s.wait(c); e.Status != 3 {
		t.Errorf("%+v", e)
	}
}
