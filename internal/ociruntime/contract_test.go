package ociruntime_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/fakeoci/faketest"
)

// TestContract holds the fake runtime to what the real one does: what passes
// here on one must pass on the other.
func TestContract(t *testing.T) {
	checks := []struct {
		name string
		run  func(t *testing.T, b *bench)
	}{
		{"life cycle", checkLifeCycle},
		{"create that fails", checkCreateFails},
		{"stdio and exit status", checkStdio},
		{"start", checkStart},
		{"kill", checkKill},
		{"delete", checkDelete},
		{"pause and resume", checkPause},
		{"update", checkUpdate},
		{"exec", checkExec},
		{"exec that fails", checkExecFails},
		{"execs at the same time", checkExecMessages},
		{"terminal", checkTerminal},
		{"unknown container", checkUnknown},
		{"about itself", checkAbout},
	}
	for _, s := range subjects {
		t.Run(s.name, func(t *testing.T) {
			for _, c := range checks {
				t.Run(c.name, func(t *testing.T) { c.run(t, newBench(t, s)) })
			}
		})
	}
}

func checkLifeCycle(t *testing.T, b *bench) {
	c := b.newBox(sleeper())
	c.create()
	s, err := c.State(ctx(t), c.id)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != c.id || s.Pid != c.pid || s.Status != "created" || s.Bundle != c.bundle || s.Created.IsZero() {
		t.Errorf("state after create: %+v", s)
	}
	c.start()
	if got := c.status(); got != "running" {
		t.Errorf("status after start is %q", got)
	}
	pids, err := c.Ps(ctx(t), c.id)
	if err != nil || len(pids) != 1 || pids[0] != c.pid {
		t.Errorf("pids are %v, %v, want %d", pids, err, c.pid)
	}
	if err := c.Kill(ctx(t), c.id, unix.SIGKILL, false); err != nil {
		t.Error(err)
	}
	ended(t, c.pid)
	if got := c.status(); got != "stopped" {
		t.Errorf("status of a zombie is %q", got)
	}
	if got := reap(t, c.pid); got != 128+9 {
		t.Errorf("exit status is %d", got)
	}
	if err := c.Delete(ctx(t), c.id, false); err != nil {
		t.Error(err)
	}
	_, err = c.State(ctx(t), c.id)
	wantError(t, err, "state", errdefs.ErrNotFound, "")
}

func checkCreateFails(t *testing.T, b *bench) {
	for _, f := range []struct {
		program, text string
		class         error
	}{
		{"nosuch", `exec: "nosuch": executable file not found in $PATH`, errdefs.ErrInvalidArgument},
		{"/no/such", `exec: "/no/such": stat /no/such: no such file or directory`, errdefs.ErrInvalidArgument},
		{"/proc", `exec: "/proc": `, errdefs.ErrPermissionDenied},
	} {
		p := sleeper()
		p.Args[0] = f.program
		c := b.newBox(p)
		_, err := c.Create(ctx(t), c.args())
		wantError(t, err, "create", f.class, f.text)
		_, err = c.State(ctx(t), c.id)
		wantError(t, err, "state", errdefs.ErrNotFound, "")
	}
	c := b.newBox(sleeper())
	c.create()
	_, err := c.Create(ctx(t), c.args())
	wantError(t, err, "create", errdefs.ErrAlreadyExists, "already exists")
	if got := c.status(); got != "created" {
		t.Errorf("status after a second create is %q", got)
	}
	args := c.args()
	args.ID, args.Bundle = c.id+"x", c.bundle+"/nosuch"
	_, err = c.Create(ctx(t), args)
	wantError(t, err, "create", nil, "no such file or directory")
}

func checkStdio(t *testing.T, b *bench) {
	c := b.newBox(shell("cat; echo error >&2; exit 42"))
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	args := c.args()
	args.Stdin, args.Stdout, args.Stderr = inR, outW, errW
	c.createWith(args)
	inR.Close()
	outW.Close()
	errW.Close()
	c.start()
	if _, err := inW.WriteString("through\n"); err != nil {
		t.Error(err)
	}
	inW.Close()
	if out, err := readAll(t, outR), readAll(t, errR); out != "through\n" || err != "error\n" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	if got := reap(t, c.pid); got != 42 {
		t.Errorf("exit status is %d", got)
	}
}

func checkStart(t *testing.T, b *bench) {
	c := b.running()
	wantError(t, c.Start(ctx(t), c.id), "start", errdefs.ErrFailedPrecondition, "already running")
	c = b.stopped()
	wantError(t, c.Start(ctx(t), c.id), "start", errdefs.ErrFailedPrecondition, "stopped")
}

func checkKill(t *testing.T, b *bench) {
	c := b.running()
	wantError(t, c.Kill(ctx(t), c.id, 999, false), "kill", errdefs.ErrInvalidArgument, "invalid argument")
	if err := c.Kill(ctx(t), c.id, unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	if got := reap(t, c.pid); got != 128+9 {
		t.Errorf("exit status is %d", got)
	}
	wantError(t, c.Kill(ctx(t), c.id, unix.SIGKILL, false), "kill", errdefs.ErrNotFound, "not running")

	created := b.newBox(sleeper())
	created.create()
	if err := created.Kill(ctx(t), created.id, unix.SIGKILL, false); err != nil {
		t.Error(err)
	}
	if got := reap(t, created.pid); got != 128+9 {
		t.Errorf("exit status of a container that was not started is %d", got)
	}
}

func checkDelete(t *testing.T, b *bench) {
	c := b.running()
	wantError(t, c.Delete(ctx(t), c.id, false), "delete", errdefs.ErrFailedPrecondition, "that is not stopped: running")
	if err := c.Delete(ctx(t), c.id, true); err != nil {
		t.Error(err)
	}
	reap(t, c.pid)
	wantError(t, c.Delete(ctx(t), c.id, false), "delete", errdefs.ErrNotFound, "does not exist")
	if err := c.Delete(ctx(t), c.id, true); err != nil {
		t.Errorf("forced delete of what is gone: %v", err)
	}
	created := b.newBox(sleeper())
	created.create()
	if err := created.Delete(ctx(t), created.id, false); err != nil {
		t.Error(err)
	}
	if got := reap(t, created.pid); got != 128+9 {
		t.Errorf("exit status of a container that was deleted before its start is %d", got)
	}
}

func checkPause(t *testing.T, b *bench) {
	c := b.running()
	wantError(t, c.Resume(ctx(t), c.id), "resume", errdefs.ErrFailedPrecondition, "not paused")
	if err := c.Pause(ctx(t), c.id); err != nil {
		t.Fatal(err)
	}
	if got := c.status(); got != "paused" {
		t.Errorf("status after pause is %q", got)
	}
	wantError(t, c.Pause(ctx(t), c.id), "pause", errdefs.ErrFailedPrecondition, "not running")
	_, err := c.Exec(ctx(t), c.execArgs("e", sleeper()))
	wantError(t, err, "exec", errdefs.ErrFailedPrecondition, "paused")
	if err := c.Resume(ctx(t), c.id); err != nil {
		t.Fatal(err)
	}
	if got := c.status(); got != "running" {
		t.Errorf("status after resume is %q", got)
	}
	paused := b.running()
	if err := paused.Pause(ctx(t), paused.id); err != nil {
		t.Fatal(err)
	}
	if err := paused.Delete(ctx(t), paused.id, true); err != nil {
		t.Errorf("forced delete of a paused container: %v", err)
	}
	if got := reap(t, paused.pid); got != 128+9 {
		t.Errorf("exit status is %d", got)
	}
	stopped := b.stopped()
	wantError(t, stopped.Pause(ctx(t), stopped.id), "pause", errdefs.ErrFailedPrecondition, "not running")
}

func checkUpdate(t *testing.T, b *bench) {
	c := b.running()
	if err := c.Update(ctx(t), c.id, []byte(`{"pids":{"limit":50}}`)); err != nil {
		t.Error(err)
	}
	wantError(t, c.Update(ctx(t), c.id, []byte(`{"pids":`)), "update", nil, "EOF")
	wantError(t, c.Update(ctx(t), c.id, make([]byte, 2<<20)), "update", errdefs.ErrInvalidArgument, "bytes")
	stopped := b.stopped()
	wantError(t, stopped.Update(ctx(t), stopped.id, []byte(`{"pids":{"limit":50}}`)), "update", errdefs.ErrFailedPrecondition, "not running")
}

func checkExec(t *testing.T, b *bench) {
	c := b.running()
	args := c.execArgs("e1", shell("cat; exit 3"))
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	args.Stdin, args.Stdout = inR, outW
	pid, err := c.Exec(ctx(t), args)
	if err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	pids, err := c.Ps(ctx(t), c.id)
	if err != nil || !contains(pids, pid) || !contains(pids, c.pid) {
		t.Errorf("pids are %v, %v, want %d and %d", pids, err, c.pid, pid)
	}
	if _, err := inW.WriteString("exec"); err != nil {
		t.Error(err)
	}
	inW.Close()
	if out := readAll(t, outR); out != "exec" {
		t.Errorf("stdout is %q", out)
	}
	if got := reap(t, pid); got != 3 {
		t.Errorf("exit status is %d", got)
	}
}

func checkExecFails(t *testing.T, b *bench) {
	c := b.running()
	for i, f := range []struct {
		program, text string
		class         error
	}{
		{"nosuch", `exec: "nosuch": executable file not found in $PATH`, errdefs.ErrInvalidArgument},
		{"/no/such", `exec: "/no/such": stat /no/such: no such file or directory`, errdefs.ErrInvalidArgument},
		{"/proc", `exec: "/proc": `, errdefs.ErrPermissionDenied},
	} {
		p := sleeper()
		p.Args[0] = f.program
		_, err := c.Exec(ctx(t), c.execArgs(fmt.Sprint(i), p))
		wantError(t, err, "exec", f.class, f.text)
	}
	args := c.execArgs("gone", sleeper())
	args.ProcessFile += "x"
	_, err := c.Exec(ctx(t), args)
	wantError(t, err, "exec", nil, "no such file or directory")

	stopped := b.stopped()
	_, err = c.Exec(ctx(t), stopped.execArgs("e", sleeper()))
	wantError(t, err, "exec", errdefs.ErrFailedPrecondition, "stopped")
}

// checkExecMessages: of calls that fail at the same time each has its own words.
func checkExecMessages(t *testing.T, b *bench) {
	c := b.running()
	var wg sync.WaitGroup
	for i := range 8 {
		name := fmt.Sprintf("nosuch%d", i)
		args := c.execArgs(name, faketest.Process(name))
		wg.Go(func() {
			_, err := c.Exec(ctx(t), args)
			if err == nil || !strings.Contains(err.Error(), `"`+name+`"`) {
				t.Errorf("exec of %s: %v", name, err)
			}
		})
	}
	wg.Wait()
}

func checkUnknown(t *testing.T, b *bench) {
	const id = "nobody"
	_, stateErr := b.State(ctx(t), id)
	_, psErr := b.Ps(ctx(t), id)
	c := b.newBox(sleeper())
	args := c.execArgs("e", sleeper())
	args.ID = id
	_, execErr := b.Exec(ctx(t), args)
	for op, err := range map[string]error{
		"start": b.Start(ctx(t), id), "kill": b.Kill(ctx(t), id, unix.SIGTERM, false),
		"delete": b.Delete(ctx(t), id, false), "pause": b.Pause(ctx(t), id), "resume": b.Resume(ctx(t), id),
		"update": b.Update(ctx(t), id, []byte("{}")), "state": stateErr, "ps": psErr, "exec": execErr,
	} {
		wantError(t, err, op, errdefs.ErrNotFound, "container does not exist")
	}
	for _, bad := range []string{"", "-x", "a/b", "..", "a\x00b"} {
		wantError(t, b.Start(ctx(t), bad), "start", errdefs.ErrInvalidArgument, "")
	}
}

func checkAbout(t *testing.T, b *bench) {
	c := b.running()
	list, err := b.List(ctx(t))
	if err != nil || len(list) != 1 || list[0].ID != c.id || list[0].Status != "running" {
		t.Errorf("list is %+v, %v", list, err)
	}
	text, err := b.Version(ctx(t))
	if err != nil || !strings.Contains(text, "spec: ") {
		t.Errorf("version is %q, %v", text, err)
	}
	f, raw, err := b.Features(ctx(t))
	if err != nil || f.OCIVersionMin == "" || f.Linux == nil || len(f.MountOptions) == 0 || len(raw) == 0 {
		t.Errorf("features are %+v, %v", f, err)
	}
}
