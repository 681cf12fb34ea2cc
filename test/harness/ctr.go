package harness

import (
	"strings"
	"testing"
	"time"
)

// endMark follows what the command of CtrRun and CtrExec has written.
const endMark = "\x1eend of output\n"

// untilRead is a script that runs its arguments, marks the end of their
// output, and ends with their exit code once it is told to on stdin.
const untilRead = `"$@" </dev/null; code=$?; printf '\036end of output\n'; printf '\036end of output\n' >&2; read -r _; exit $code`

// CtrRun runs a command in a new container of the target, an image or a root
// directory, by `ctr run --rm` in the foreground. It is a child of a shell that
// goes on until all output is here: containerd's client throws away what it
// has not read at the exit.
func (d *Daemon) CtrRun(tb testing.TB, flags []string, target, id string, command ...string) Result {
	tb.Helper()
	args := append([]string{d.Programs.Ctr, "run", "--rm"}, flags...)
	return d.runUntilRead(tb, append(args, target, id), command)
}

// CtrExec runs a command in a container by `ctr tasks exec`, the same way.
func (d *Daemon) CtrExec(tb testing.TB, flags []string, id string, command ...string) Result {
	tb.Helper()
	args := append([]string{d.Programs.Ctr, "tasks", "exec", "--exec-id", d.ID("exec")}, flags...)
	return d.runUntilRead(tb, append(args, id), command)
}

func (d *Daemon) runUntilRead(tb testing.TB, args, command []string) Result {
	tb.Helper()
	args = append(args, "/bin/sh", "-c", untilRead, "sh")
	p := d.Spawn(tb, append(args, command...)...)
	ended := Poll(time.Minute, func() bool {
		select {
		case <-p.done:
			return true // before its command came to run
		default:
			return strings.HasSuffix(p.Stdout(), endMark) && strings.HasSuffix(p.Stderr(), endMark)
		}
	})
	if !ended {
		tb.Fatalf("%s: no end of its output\nstdout: %q\nstderr: %q", args, p.Stdout(), p.Stderr())
	}
	p.Type(tb, "\n")
	r := p.Wait(tb)
	r.Stdout, r.Stderr = strings.TrimSuffix(r.Stdout, endMark), strings.TrimSuffix(r.Stderr, endMark)
	return r
}
