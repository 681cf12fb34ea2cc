package speccheck

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/test/harness"
)

// check fails where a trial under Berth did not come to what it must: what the
// runtimes of the list do, on a host that has what it needs, is done.
// Everything else is refused before the runtime is run, by an error that names
// the member, or let pass with a warning in the daemon's log.
func (l *lab) check(t *testing.T, r *runtime, u *use, by, warned []string, got trial) {
	t.Helper()
	able := (len(by) == 0 || slices.Contains(by, r.name)) && (u.needs == nil || u.needs() == "")
	switch {
	case able && got.outcome == done:
	case !able && slices.Contains(warned, r.name) && got.outcome == ignored:
		if !l.warned(t, got.id, u.path) {
			t.Errorf("there is no warning that names %s in the log", u.path)
		}
	case !able && got.outcome == refused:
		if !errors.Is(got.err, errdefs.ErrFailedPrecondition) || !strings.Contains(got.err.Error(), u.path) {
			t.Errorf("the error is no FailedPrecondition that names %s: %v", u.path, got.err)
		}
	case !able && got.outcome == late && (slices.Contains(u.fails, r.name) || slices.Equal(u.fails, everybody)):
	default:
		t.Error(got)
	}
}

// warned says whether the daemon's log has a warning about a member of a
// container's spec.
func (l *lab) warned(t *testing.T, id, path string) bool {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(l.daemon.Dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, id) && strings.Contains(line, path) {
			return true
		}
	}
	return false
}

// TestBerth runs the table under berthd with each runtime.
func TestBerth(t *testing.T) {
	l := newLab(t, harness.Config{})
	for _, r := range l.runtimes(t) {
		t.Run(r.name, func(t *testing.T) {
			for _, u := range uses() {
				t.Run(u.name, func(t *testing.T) {
					t.Parallel()
					l.check(t, r, &u, u.by, nil, l.try(t, r, &u))
				})
			}
		})
	}
}

// TestBerthRunning asks for the members of process in the process of an exec,
// and for limits in an update.
func TestBerthRunning(t *testing.T) {
	l := newLab(t, harness.Config{})
	for _, r := range l.runtimes(t) {
		t.Run(r.name, func(t *testing.T) {
			host := l.place(t, r, &use{name: "host of execs"}, "")
			ctx, cancel := l.context()
			defer cancel()
			l.hold(ctx, t, r, host, &use{})
			t.Run("uses", func(t *testing.T) {
				for _, u := range uses() {
					if strings.HasPrefix(u.path, "process.") {
						t.Run("exec "+u.name, func(t *testing.T) {
							t.Parallel()
							by := u.by
							if u.execBy != nil {
								by = u.execBy
							}
							l.check(t, r, &u, by, u.execWarned, l.tryExec(t, r, host.id, &u))
						})
					}
				}
				for _, u := range cgroupUses {
					t.Run("update "+u.name, func(t *testing.T) {
						t.Parallel()
						by := u.by
						if u.updateBy != nil {
							by = u.updateBy
						}
						l.check(t, r, &u, by, u.updateWarned, l.tryUpdate(t, r, &u))
					})
				}
			})
		})
	}
}

// TestNothingBefore refuses and then looks: no process was started but the
// runtime that was asked what it supports, and neither a bundle nor a shim's
// directory was made.
func TestNothingBefore(t *testing.T) {
	l := newLab(t, harness.Config{})
	r := l.runtimes(t)[0]
	for _, u := range uses() {
		if !slices.Equal(u.by, nobody) || u.needs != nil || u.fails != nil {
			continue
		}
		if got := l.try(t, r, &u); got.outcome != refused {
			t.Errorf("%s: %s", u.name, got)
		}
		if left := l.daemon.Processes(); len(left) > 0 {
			t.Errorf("%s: processes after it was refused: %v", u.name, left)
		}
	}
	for _, dir := range []string{"io.containerd.runtime.v2.task", "io.containerd.berth.group"} {
		dir = filepath.Join(l.daemon.State, dir, l.daemon.Namespace)
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v; it is made with the first bundle or shim", dir, err)
		}
	}
	calls, err := os.ReadFile(r.calls)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(calls)) {
		if line = strings.TrimSpace(line); line != "features" && line != "--version" {
			t.Errorf("the runtime was called: %s", line)
		}
	}
}

// TestExecAffinity sees the CPUs of an exec in a container that says them.
func TestExecAffinity(t *testing.T) {
	u := use{
		name: "CPU affinity of execs", path: "process.execCPUAffinity",
		spec:  []string{`{"process": {"execCPUAffinity": {"initial": "0", "final": "0"}}}`},
		probe: `grep Cpus_allowed_list /proc/self/status`, want: `:\s0\n`,
	}
	l := newLab(t, harness.Config{})
	list := l.runtimes(t)
	ctx, cancel := l.context()
	defer cancel()
	for _, r := range []*runtime{list[0], list[2]} {
		l.check(t, r, &u, newRunc, nil, l.try(t, r, &u))
	}
	p := l.place(t, list[1], &u, "")
	l.hold(ctx, t, list[1], p, &u)
	if err := l.exec(ctx, t, p.id, p.id, p.log, (&use{probe: u.probe}).part(t, p, "process")); err != nil {
		t.Fatal(err)
	}
	l.check(t, list[1], &u, newRunc, nil, u.look(t, p, p.id))
}
