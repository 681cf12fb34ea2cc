package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/fakeoci/fault"
)

const v3 = "containerd.task.v3.Task"

func ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	t.Cleanup(cancel)
	return ctx
}

func (r *remote) make(t *testing.T, id, script string, start bool) task.Task {
	t.Helper()
	c, err := r.Create(ctx(t), r.id(id), r.Config(t, id, script))
	if err != nil {
		t.Fatal(err)
	}
	if start {
		if _, err := c.Start(ctx(t)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// told counts the exit events of a process.
func (r *remote) exits(container, exec string) (n int, status uint32) {
	for _, e := range r.Events() {
		if e.Kind == task.EventExit && e.ID.Container == container && e.ExecID == exec {
			n, status = n+1, e.Exit.Status
		}
	}
	return n, status
}

// checkExit holds all that tells of an exit against what it must be, and
// deletes the process.
func (r *remote) checkExit(p task.Process, container string, want uint32) error {
	c, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	exit, err := p.Wait(c)
	if err != nil || exit.Status != want || exit.At.IsZero() {
		return fmt.Errorf("%s/%s: wait says %d (%v), want %d", container, p.ExecID(), exit.Status, err, want)
	}
	st, err := p.State(c)
	if err != nil || st.Status != task.Stopped || st.Exit == nil || st.Exit.Status != want || !st.Exit.At.Equal(exit.At) {
		return fmt.Errorf("%s/%s: state says %+v (%v), want %d at %s", container, p.ExecID(), st, err, want, exit.At)
	}
	if p.ExecID() == "" {
		var note struct{ Pid, Status int }
		data, err := os.ReadFile(filepath.Join(r.dir, container, "exit.json"))
		if err != nil || json.Unmarshal(data, &note) != nil || note.Status != int(want) || note.Pid != int(st.Pid) {
			return fmt.Errorf("%s: exit.json says %s (%v), want %d of %d", container, data, err, want, st.Pid)
		}
	}
	deleted, err := p.Delete(c)
	if err != nil || deleted.Status != want || !deleted.At.Equal(exit.At) || deleted.Pid != st.Pid {
		return fmt.Errorf("%s/%s: delete says %+v (%v), want %d at %s", container, p.ExecID(), deleted, err, want, exit.At)
	}
	return nil
}

// checkTold waits for the exit event and looks that there is one.
func (r *remote) checkTold(t *testing.T, container, exec string, want uint32) {
	t.Helper()
	await(t, "exit event of "+container+"/"+exec, func() bool { n, _ := r.exits(container, exec); return n > 0 })
	if n, status := r.exits(container, exec); n != 1 || status != want {
		t.Errorf("%d exit events of %s/%s, status %d, want %d", n, container, exec, status, want)
	}
}

func (r *remote) kill(t *testing.T, c task.Task) {
	t.Helper()
	if err := c.Kill(ctx(t), unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if err := r.checkExit(c, c.ID().Container, 137); err != nil {
		t.Error(err)
	}
	tasktest.CheckEvents(t, r.Events())
}

// each runs fn for 0…n-1, some at the same time.
func each(t *testing.T, n, atOnce int, fn func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(i); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// run is one exec from its registration to its delete.
func (r *remote) run(t *testing.T, c task.Task, id, script string, want uint32) error {
	p, err := c.Exec(ctx(t), id, r.Exec(t, script))
	if err != nil {
		return err
	}
	if _, err := p.Start(ctx(t)); err != nil {
		return err
	}
	return r.checkExit(p, c.ID().Container, want)
}

// Every exit code, of 1,000 execs that end at once, through the fake runtime,
// and of some through runc.
func TestExitCodes(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, runtime string
		execs         int
	}{{"fake", faketest.Binary(t), 1000}, {"runc", runc, 64}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRemote(t, v3, c.runtime)
			init := r.make(t, "c", tasktest.Forever, true)
			each(t, c.execs, 16, func(i int) error {
				code := i % 256
				if c.execs < 256 {
					code = i * 256 / c.execs
				}
				return r.run(t, init, "e"+strconv.Itoa(i), fmt.Sprintf("exit %d", code), uint32(code))
			})
			r.kill(t, init)
			r.checkTold(t, "c", "", 137)
			for i := range c.execs {
				if n, _ := r.exits("c", "e"+strconv.Itoa(i)); n != 1 {
					t.Errorf("%d exit events of exec %d", n, i)
				}
			}
			r.noZombies(t)
		})
	}
}

// noZombies looks that the shim has reaped what ended.
func (r *remote) noZombies(t *testing.T) {
	t.Helper()
	await(t, "no zombie below the shim", func() bool {
		out, err := exec.Command("ps", "-o", "stat=", "--ppid", strconv.Itoa(r.shim.pid)).Output()
		var none *exec.ExitError
		return (err == nil || errors.As(err, &none)) && !strings.Contains(string(out), "Z")
	})
}

// Every signal from 1 to 64 does to an exec what the kernel says it does, and
// the container sees none of them as ignored, whatever its daemon ignored.
func TestSignals(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t)
	d.wrap = []string{"env", "--ignore-signal=HUP,INT,QUIT,USR1,TTIN,RTMIN"} // nohup, make, a shell's "&"
	r := d.remote(d.start(d.bundle("hold", "", nil)), v3, runc)
	c := r.make(t, "c", tasktest.Forever, true)
	each(t, 64, 4, func(i int) error {
		sig, id := syscall.Signal(i+1), "s"+strconv.Itoa(i+1)
		p, err := c.Exec(ctx(t), id, r.Exec(t, "exec sleep 1000"))
		if err != nil {
			return err
		}
		pid, err := p.Start(ctx(t))
		if err != nil {
			return err
		}
		if err := awaitPlain(pid); err != nil {
			return err
		}
		if err := p.Kill(ctx(t), sig, false); err != nil {
			return fmt.Errorf("signal %d: %w", sig, err)
		}
		want := uint32(128 + sig)
		switch sig {
		case unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
			// Nothing, or it stops: it is there.
			if st, err := p.State(ctx(t)); err != nil || st.Status != task.Running {
				return fmt.Errorf("after signal %d: %+v, %w", sig, st, err)
			}
			if err := p.Kill(ctx(t), unix.SIGKILL, false); err != nil {
				return err
			}
			want = 137
		}
		return r.checkExit(p, "c", want)
	})
	r.kill(t, c)
}

// awaitPlain waits until the process is what it was asked to be, and says
// whether it ignores or blocks a signal.
func awaitPlain(pid uint32) error {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(comm)) == "sleep" {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d is still %q", pid, comm)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for _, mask := range []string{"SigIgn", "SigBlk"} {
		if !strings.Contains(string(status), "\n"+mask+":\t0000000000000000\n") {
			return fmt.Errorf("process %d has signals in %s:\n%s", pid, mask, status)
		}
	}
	return nil
}

// The process of a container ends while the runtime creates it, after it was
// created, and before Start has returned.
func TestExitsAtOddTimes(t *testing.T) {
	r := newRemote(t, v3, faketest.Binary(t))
	root := filepath.Join(r.shim.root, "ns")
	faketest.Order(t, root, fault.Rule{Op: "create", ID: "during", At: "middle", Action: "sleep", SleepMillis: 1000})
	killed := make(chan error, 1)
	go func() { killed <- killFake(filepath.Join(root, "during", "state.json")) }()
	during := r.make(t, "during", tasktest.Forever, false)
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	created := r.make(t, "created", tasktest.Forever, false)
	if err := created.Kill(ctx(t), unix.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	// It may have ended by the first signal.
	if err := created.Kill(ctx(t), unix.SIGKILL, false); err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	for _, c := range []task.Task{during, created} {
		if _, err := c.Wait(ctx(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(ctx(t)); err == nil {
			t.Errorf("%s: started although it has ended", c.ID())
		}
	}
	if err := r.checkExit(during, "during", 137); err != nil {
		t.Error(err)
	}
	r.checkTold(t, "during", "", 137)
	if exit, err := created.Delete(ctx(t)); err != nil || exit.Status != 137 && exit.Status != 143 {
		t.Errorf("%+v, %v", exit, err)
	}
	faketest.Order(t, root, fault.Rule{Op: "start", ID: "quick", At: "after", Action: "sleep", SleepMillis: 500})
	quick := r.make(t, "quick", "exit 5", true)
	if err := r.checkExit(quick, "quick", 5); err != nil {
		t.Error(err)
	}
	r.checkTold(t, "quick", "", 5)
	tasktest.CheckEvents(t, r.Events())
}

// killFake ends the process that the fake runtime has made, once it has.
func killFake(state string) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		data, err := os.ReadFile(state)
		var c struct{ Pid int }
		if err == nil && json.Unmarshal(data, &c) == nil && c.Pid > 1 {
			return unix.Kill(c.Pid, unix.SIGKILL)
		}
	}
	return errors.New("the runtime has made no process")
}

// Processes that outlive their parents become nobody's: the shim reaps them,
// and a container's end is theirs.
func TestOrphans(t *testing.T) {
	r := newRemote(t, v3, faketest.Binary(t))
	for i := range 10 {
		id := "c" + strconv.Itoa(i)
		c := r.make(t, id, `sh -c 'sleep 0.05 & sleep 0.1 & exit 0'; (sh -c 'exit 9' &); exit 4`, true)
		if err := r.checkExit(c, id, 4); err != nil {
			t.Error(err)
		}
	}
	r.noZombies(t)
	tasktest.CheckEvents(t, r.Events())
}

// reconnect goes on with the shim that serves now.
func (r *remote) reconnect() {
	s := r.shim
	await(s.t, "the next shim", func() bool {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			return false
		}
		s.Client = ttrpc.NewClient(conn)
		var resp taskAPI.ConnectResponse
		if s.call("Connect", &taskAPI.ConnectRequest{}, &resp) != nil || int(resp.ShimPid) == s.pid {
			s.Close()
			return false
		}
		s.pid = int(resp.ShimPid)
		return true
	})
}

// Exits while the daemon is down, and while daemon and shim are down, are told
// later, once, in order.
func TestExitsWithoutDaemon(t *testing.T) {
	d := newDaemon(t)
	s, guard := d.guarded()
	r := d.remote(s, v3, faketest.Binary(t))
	gate := filepath.Join(d.dir, "gate")
	script := "while [ ! -e " + gate + "$1 ]; do sleep 0.01; done; exit "
	one := r.make(t, "one", script+"21", true)
	e, err := one.Exec(ctx(t), "e", r.Exec(t, script+"22"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(ctx(t)); err != nil {
		t.Fatal(err)
	}
	two := r.make(t, "two", strings.ReplaceAll(script, "$1", "2")+"23", true)
	st, err := two.State(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "events of the starts", func() bool { return len(r.Events()) == 6 })

	d.stopEvents()
	writeFile(t, gate)
	if exit, err := one.Wait(ctx(t)); err != nil || exit.Status != 21 {
		t.Errorf("%+v, %v", exit, err)
	}
	// The shim dies with what it has not told; the second ends without any.
	if err := unix.Kill(guard, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	old := s.pid
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	writeFile(t, gate+"2")
	await(t, "the end of the process", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", st.Pid))
		return err == nil && strings.Contains(string(stat), ") Z ")
	})
	if err := unix.Kill(guard, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.reconnect()
	if len(r.Events()) != 6 {
		t.Errorf("events came although nobody was there")
	}
	d.serveEvents()
	t.Cleanup(func() { d.stopEvents() })
	r.checkTold(t, "one", "", 21)
	r.checkTold(t, "one", "e", 22)
	r.checkTold(t, "two", "", 23)
	for id, want := range map[string]uint32{"one": 21, "two": 23} {
		if err := r.checkExit(r.task(id), id, want); err != nil {
			t.Error(err)
		}
	}
	await(t, "events of the deletes", func() bool { return len(r.Events()) == 11 })
	tasktest.CheckEvents(t, r.Events())
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A process in the background holds an exec's output open: the exec ends, and is
// deleted, without it. It goes on.
func TestExecDeletedBesideItsChild(t *testing.T) {
	r := newRemote(t, v3, "")
	c := r.make(t, "c", tasktest.Forever, true)
	cfg := r.Exec(t, "sleep 1000 & echo $!; exit 3")
	out := filepath.Join(r.dir, "out")
	cfg.Stdio.Stdout = "file://" + out
	p, err := c.Exec(ctx(t), "e", cfg)
	if err == nil {
		_, err = p.Start(ctx(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.checkExit(p, "c", 3); err != nil {
		t.Error(err)
	}
	if _, err := p.State(ctx(t)); !errdefs.IsNotFound(err) {
		t.Errorf("state of the deleted exec: %v", err)
	}
	if data, err := os.ReadFile(out); err != nil || len(data) < 2 {
		t.Errorf("output %q, %v", data, err)
	}
	pids, err := c.Pids(ctx(t))
	if err != nil || len(pids) < 2 {
		t.Errorf("processes %v (%v), want init and what is in the background", pids, err)
	}
	r.kill(t, c)
	r.noZombies(t)
}
