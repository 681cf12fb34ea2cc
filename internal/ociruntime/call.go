package ociruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

const (
	maxStdout = 1 << 20
	maxStderr = 4 << 10
)

// call is one run of the runtime binary.
type call struct {
	op   string
	args []string
	// id is checked before anything runs, but in a global call, which names no
	// container.
	id     string
	global bool
	// stdin, stdout and stderr are handed down as they are; nil is the null
	// device.
	stdin, stdout, stderr *os.File
	// inherited says that a process of the container keeps stdout and stderr, so
	// that they cannot be captured.
	inherited bool
	// output says that what the runtime prints is the answer.
	output bool
}

// call runs the binary to its end and returns what it printed.
func (r *Runtime) call(ctx context.Context, c call) ([]byte, error) {
	if !c.global {
		if err := checkID(c.id); err != nil {
			return nil, r.failure(c.op, "", err, nil)
		}
	}
	path, err := r.lookup(c.op)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout())
	defer cancel()
	p := &process{cmd: r.command(path, c)}
	if err := p.capture(c); err != nil {
		return nil, r.failure(c.op, "", err, nil)
	}
	mark := markLog(r.LogPath)
	begin := time.Now()
	res := p.wait(ctx)
	if res.err == nil && !res.overflow {
		return res.stdout, nil
	}
	if res.overflow && res.err == nil {
		return nil, r.failure(c.op, fmt.Sprintf("%s printed more than %d bytes", path, maxStdout), nil, errdefs.ErrOutOfRange)
	}
	return nil, r.explain(ctx, c, res, mark, time.Since(begin))
}

func (r *Runtime) command(path string, c call) *exec.Cmd {
	cmd := &exec.Cmd{
		Path: path,
		Args: append(append([]string{path}, r.globalFlags()...), c.args...),
		Env:  environment(os.Environ()),
		// Not the caller's directory: that may be a bundle that is gone.
		Dir:         "/",
		SysProcAttr: childAttr(),
	}
	// A nil *os.File in the interface would not be nil.
	if c.stdin != nil {
		cmd.Stdin = c.stdin
	}
	if c.stdout != nil {
		cmd.Stdout = c.stdout
	}
	if c.stderr != nil {
		cmd.Stderr = c.stderr
	}
	return cmd
}

// environment is the caller's, less what the service manager left there for
// the caller alone: runc would pass the sockets and the notify address on to
// the container.
func environment(env []string) []string {
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "PWD":
		default:
			out = append(out, e)
		}
	}
	return append(out, "PWD=/")
}

// lookup finds the binary and returns its absolute path.
func (r *Runtime) lookup(op string) (string, error) {
	path, err := exec.LookPath(r.binary())
	if err == nil || errors.Is(err, exec.ErrDot) {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", r.notRunnable(op, err)
	}
	return path, nil
}

// notRunnable says that the binary could not be run at all. Its words are not
// those that runtimes have for a missing or forbidden program inside the container:
// that is another's fault.
func (r *Runtime) notRunnable(op string, err error) error {
	name := r.binary()
	where := ""
	if !strings.Contains(name, "/") {
		where = " in PATH"
	}
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		msg := fmt.Sprintf("the runtime binary %q was not found%s: install runc or crun, or name another binary in the runtime's options", name, where)
		return r.failure(op, msg, err, errdefs.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		msg := fmt.Sprintf("the runtime binary %q may not be executed: check its mode and that its file system is not mounted noexec", name)
		return r.failure(op, msg, err, errdefs.ErrFailedPrecondition)
	}
	return r.failure(op, fmt.Sprintf("the runtime binary %q cannot be run: %v", name, err), err, errdefs.ErrFailedPrecondition)
}

func (r *Runtime) failure(op, msg string, err, class error) error {
	return &task.RuntimeError{Binary: r.binary(), Op: op, Message: msg, Err: err, Class: class}
}

// explain makes the error of a call that failed.
func (r *Runtime) explain(ctx context.Context, c call, res result, mark logMark, took time.Duration) error {
	if res.notStarted && !res.killed {
		return r.notRunnable(c.op, res.err)
	}
	stderr := strings.TrimSpace(string(bytes.ToValidUTF8(res.stderr, []byte("\uFFFD"))))
	said := mark.lastError(stderr)
	if said == "" {
		said = stderr
	}
	said = shorten(said)
	if res.killed {
		return r.interrupted(ctx, c.op, said, res, took)
	}
	msg := said
	if msg == "" {
		msg = fmt.Sprintf("%s ended without a word: %v", r.binary(), res.err)
		if c.inherited && c.stderr != nil {
			msg += " (if it printed something, that is in the container's stderr)"
		}
	}
	return r.failure(c.op, msg, res.err, classify(c.op, said))
}

// interrupted makes the error of a call that was cut short by its deadline or
// by its caller.
func (r *Runtime) interrupted(ctx context.Context, op, said string, res result, took time.Duration) error {
	took = took.Round(time.Millisecond)
	cause, what := context.DeadlineExceeded, fmt.Sprintf("%s timed out after %s", r.binary(), took)
	if errors.Is(ctx.Err(), context.Canceled) {
		cause, what = context.Canceled, fmt.Sprintf("%s was given up by its caller after %s", r.binary(), took)
	}
	switch {
	case res.notStarted:
		what += " before it could run"
	case res.stuck:
		what += " and was killed, but the kernel has not ended it yet"
	default:
		what += " and was killed"
	}
	if said != "" {
		what += "; its last words: " + said
	}
	return r.failure(op, what, cause, nil)
}
