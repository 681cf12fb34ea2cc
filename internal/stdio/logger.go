package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// loggerReadyTime bounds the wait for a logger to say that it is ready.
	loggerReadyTime = 10 * time.Second
	// loggerGrace is how long a logger has after SIGTERM.
	loggerGrace = 10 * time.Second
	// loggerKillTime is how long it has to be gone after SIGKILL.
	loggerKillTime = 5 * time.Second
	// A logger that ends while there is something to log is started again, after
	// a pause that doubles from the first to the second; it is the first again after one
	// that lived as long as the second.
	loggerMinPause = 100 * time.Millisecond
	loggerMaxPause = 10 * time.Second
	// loggerTail is how much of what it says to its standard error is reported.
	loggerTail = 1024
)

// loggerSpec is a program that logs: binary:///path?key=value&… The protocol is
// containerd's: arguments are the keys, each followed by its (first) value; descriptors 3
// and 4 are the container's stdout and stderr, and 5 is where it says that it is
// ready.
type loggerSpec struct {
	path string
	args []string
	// strict is binary-v2://: a byte must be written to descriptor 5. Otherwise
	// it may as well be closed.
	strict bool
}

// parseLogger reads the URI of a logger. The arguments keep its order.
func (t target) parseLogger(u *url.URL) (*loggerSpec, error) {
	s := &loggerSpec{path: u.Path, strict: u.Scheme == "binary-v2"}
	if u.Host != "" || u.Fragment != "" || u.User != nil || !filepath.IsAbs(u.Path) || strings.ContainsRune(u.Path, 0) {
		return nil, t.invalid(u.String(), "only an absolute path and a query may follow "+u.Scheme+"://")
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		k, v, _ := strings.Cut(pair, "=")
		key, kerr := url.QueryUnescape(k)
		value, verr := url.QueryUnescape(v)
		if kerr != nil || verr != nil || strings.ContainsRune(key+value, 0) {
			return nil, t.invalid(u.String(), "the query is not valid")
		}
		if pair != "" && !seen[key] {
			seen[key] = true
			s.args = append(s.args, key, value)
		}
	}
	return s, nil
}

// logger is a program that reads a container's outputs itself, and is kept
// running for as long as there is something to read. The pipes outlive it, and
// this process too: the guard has them.
type logger struct {
	spec   *loggerSpec
	env    []string
	holder holder
	// pipes are our ends of stdout and stderr; nil where there is none.
	pipes [2]*heldFile
	stop  context.Context
	end   context.CancelFunc
	done  chan struct{} // closed when run has ended

	mu   sync.Mutex
	proc *loggerProcess // guarded by mu; nil between two
}

// loggerProcess is a logger that runs, or has ended and was not seen to.
type loggerProcess struct {
	pidfd *heldFile
	errs  *heldFile // its standard error, where the reader goes on after an adoption
	cmd   *exec.Cmd // nil where the process is a predecessor's child
	read  chan struct{}

	mu   sync.Mutex
	tail []byte // guarded by mu
}

func newLogger(spec *loggerSpec, cfg Config, h holder) *logger {
	l := &logger{
		spec: spec, holder: h, done: make(chan struct{}),
		env: []string{"CONTAINER_ID=" + cfg.ID, "CONTAINER_NAMESPACE=" + cfg.Namespace},
	}
	l.stop, l.end = context.WithCancel(context.Background())
	return l
}

// start starts the program and waits until it is ready.
func (l *logger) start(ctx context.Context) error {
	p, ready, err := l.spawn()
	if err != nil {
		return l.fail(err)
	}
	defer ready.Close()
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	if err := l.awaitReady(ctx, p, ready); err != nil {
		p.signal(unix.SIGKILL)
		if p.wait(loggerKillTime) {
			err = fmt.Errorf("%w (%s)", err, p.forget())
		}
		return l.fail(err)
	}
	l.mu.Lock()
	l.proc = p
	l.mu.Unlock()
	return nil
}

func (l *logger) fail(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("%w (%w)", err, errdefs.ErrNotFound)
	case errors.Is(err, unix.EACCES):
		err = fmt.Errorf("%w (%w)", err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.ENOEXEC):
		err = fmt.Errorf("%w (%w)", err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("logger %s: %w", l.spec.path, err)
}

// spawn starts the process. What it gets of the pipes is opened anew: ours do
// not block, and a program expects to.
func (l *logger) spawn() (_ *loggerProcess, ready *os.File, err error) {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	for _, pipe := range l.pipes {
		f, err := reopenPipe(pipe)
		if err != nil {
			return nil, nil, err
		}
		theirs = append(theirs, f)
	}
	theirReady, ready, err := containerPipe(0, 0, containerWrites)
	if err != nil {
		return nil, nil, err
	}
	theirs = append(theirs, theirReady)
	theirErrs, errs, err := containerPipe(0, 0, containerWrites)
	if err != nil {
		return nil, nil, errors.Join(err, ready.Close())
	}
	pidfd := -1
	cmd := &exec.Cmd{
		Path: l.spec.path, Args: append([]string{l.spec.path}, l.spec.args...), Env: l.env,
		Stderr: theirErrs, ExtraFiles: theirs,
		// No signal for the shim's terminal or group is for it.
		SysProcAttr: &unix.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	theirs = append(theirs, theirErrs)
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, ready.Close(), errs.Close())
	}
	p := &loggerProcess{cmd: cmd, read: make(chan struct{})}
	p.errs = l.holder.hold(keptLoggerErrs, errs)
	f, err := pollable(pidfd, "logger")
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		p.errs.close()
		return nil, nil, errors.Join(err, ready.Close())
	}
	p.pidfd = l.holder.hold(keptLogger, f)
	go p.readErrors() // ends with p.errs
	return p, ready, nil
}

func reopenPipe(pipe *heldFile) (f *os.File, err error) {
	if pipe == nil {
		return os.Open(os.DevNull)
	}
	err = withFd(pipe.conn, func(fd uintptr) error {
		f, err = reopen(fd, unix.O_RDONLY, pipe.name)
		return err
	})
	return f, err
}

// awaitReady waits for the logger's word. One that died without it has closed
// the pipe too.
func (l *logger) awaitReady(ctx context.Context, p *loggerProcess, ready *os.File) error {
	_ = ready.SetReadDeadline(time.Now().Add(loggerReadyTime))
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := ready.Read(make([]byte, 1))
	switch {
	case n == 1:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it was not ready within %s: %w", loggerReadyTime, context.DeadlineExceeded)
	case p.dies():
		p.wait(loggerKillTime)
		return fmt.Errorf("it ended before it was ready: %w", errdefs.ErrFailedPrecondition)
	case l.spec.strict:
		return fmt.Errorf("it closed descriptor 5 without writing to it: %w", errdefs.ErrFailedPrecondition)
	default:
		return nil
	}
}

// dies says that the process has ended or is about to. A process that exits
// closes its files first and can be waited for a moment later, but the kernel
// has marked it before both.
func (p *loggerProcess) dies() bool {
	const exiting = 0x4 // PF_EXITING
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return true
	}
	var flags uint
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) > 6 {
		_, _ = fmt.Sscan(string(fields[6]), &flags)
	}
	// Asked last: until it is reaped, the pid is its own.
	return flags&exiting != 0 || p.wait(0)
}

// wait waits until the process has ended; negative is without end. It reports
// false when it has not, or was forgotten.
func (p *loggerProcess) wait(d time.Duration) bool {
	if d == 0 {
		ended := false
		_ = withFd(p.pidfd.conn, func(fd uintptr) error { ended = ready(fd, unix.POLLIN); return nil })
		return ended
	}
	if d > 0 {
		_ = p.pidfd.file.SetReadDeadline(time.Now().Add(d))
		defer func() { _ = p.pidfd.file.SetReadDeadline(time.Time{}) }()
	}
	return p.pidfd.conn.Read(func(fd uintptr) bool { return ready(fd, unix.POLLIN) }) == nil
}

func (p *loggerProcess) signal(sig unix.Signal) {
	// It fails when the process has ended.
	_ = withFd(p.pidfd.conn, func(fd uintptr) error { return unix.PidfdSendSignal(int(fd), sig, nil, 0) })
}

// forget reaps a process that has ended, closes what belongs to it, and says
// how it ended.
func (p *loggerProcess) forget() string {
	how := "its status is not known"
	if p.cmd != nil {
		// The shim's reaper may have been quicker, which costs the status.
		if err := p.cmd.Wait(); err == nil || p.cmd.ProcessState != nil {
			how = p.cmd.ProcessState.String()
		}
	}
	select {
	case <-p.read:
	case <-time.After(loggerMinPause): // a child of it still has the pipe
	}
	p.close()
	<-p.read
	p.mu.Lock()
	defer p.mu.Unlock()
	if said := strings.TrimSpace(strings.ToValidUTF8(string(p.tail), "\uFFFD")); said != "" {
		how += fmt.Sprintf("; it said %q", said)
	}
	return how
}

func (p *loggerProcess) close() {
	p.pidfd.close()
	p.errs.close()
}

// readErrors reads what the logger says, so that it never blocks on it, and
// keeps the end.
func (p *loggerProcess) readErrors() {
	defer close(p.read)
	for {
		buf, n, err := readChunk(p.errs.conn)
		if n > 0 {
			p.mu.Lock()
			p.tail = append(p.tail, buf[:n]...)
			p.tail = append(p.tail[:0], p.tail[max(0, len(p.tail)-loggerTail):]...)
			p.mu.Unlock()
		}
		putBuffer(buf)
		if n == 0 || err != nil {
			return
		}
	}
}
