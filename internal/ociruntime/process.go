package ociruntime

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killGrace is how long a killed runtime may take to die. Only one in an
// uninterruptible system call takes longer.
const killGrace = 10 * time.Second

// childAttr: the runtime dies with its caller, and it leads a process group so
// that helpers which it left behind can be killed with it. What has become the
// container's has a session of its own by then and is not in that group.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// process is a child from before its fork to after its wait.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *capture

	mu sync.Mutex
	// pid is guarded by mu, and is not 0 while the child exists and has not been
	// reaped: only then may it be signalled.
	pid int
	// doomed is guarded by mu.
	doomed bool
}

type result struct {
	stdout, stderr []byte
	// overflow says that stdout was cut.
	overflow bool
	// err is nil when the child ended with 0.
	err error
	// notStarted: there was no child. killed: the context ended first. stuck:
	// it was killed and has not died.
	notStarted, killed, stuck bool
}

// capture prepares pipes for the outputs that may be captured.
func (p *process) capture(c call) error {
	if c.inherited {
		return nil
	}
	var err error
	if p.stderr, err = newCapture(maxStderr); err != nil {
		return err
	}
	p.cmd.Stderr = p.stderr.w
	if !c.output {
		return nil
	}
	if p.stdout, err = newCapture(maxStdout); err != nil {
		p.stderr.abandon()
		return err
	}
	p.cmd.Stdout = p.stdout.w
	return nil
}

// wait runs the child and returns when it has ended and been reaped. When
// ctx ends first it kills the child, and then waits for at most killGrace; a
// child that is stuck in the kernel for longer is reaped later by the
// goroutine that started it.
func (p *process) wait(ctx context.Context) result {
	if err := ctx.Err(); err != nil {
		p.stdout.abandon()
		p.stderr.abandon()
		return result{err: err, notStarted: true, killed: true}
	}
	done := make(chan result, 1)
	go func() { done <- p.run() }()
	select {
	case res := <-done:
		return res
	case <-ctx.Done():
	}
	p.kill()
	grace := time.NewTimer(killGrace)
	defer grace.Stop()
	select {
	case res := <-done:
		res.killed = res.err != nil
		return res
	case <-grace.C:
		return result{err: ctx.Err(), killed: true, stuck: true}
	}
}

// run forks, waits and reaps on one OS thread: the parent death signal is sent
// when the thread that forked ends, not when the process does, so that thread
// must not be retired before the child is.
func (p *process) run() result {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	p.stdout.begin()
	p.stderr.begin()
	if err != nil {
		p.stdout.end()
		p.stderr.end()
		return result{err: err, notStarted: true}
	}
	p.setPid(p.cmd.Process.Pid)
	waitable(p.cmd.Process.Pid)
	p.setPid(0)
	err = p.cmd.Wait()
	res := result{err: err}
	res.stdout, res.overflow = p.stdout.end()
	res.stderr, _ = p.stderr.end()
	return res
}

// waitable returns when the child has ended, and leaves it to be reaped.
func waitable(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

func (p *process) setPid(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
	p.killLocked()
}

func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doomed = true
	p.killLocked()
}

// killLocked kills the child's group. An error is of no use: the child has
// ended already.
func (p *process) killLocked() {
	if p.doomed && p.pid > 0 {
		_ = unix.Kill(-p.pid, unix.SIGKILL)
	}
}

// capture keeps the first bytes that a child writes to a pipe and drops the
// rest. A nil capture does nothing.
type capture struct {
	r, w *os.File
	max  int
	// buf and cut belong to the reading goroutine until done is closed.
	buf  []byte
	cut  bool
	done chan struct{}
}

func newCapture(limit int) (*capture, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &capture{r: r, w: w, max: limit, done: make(chan struct{})}, nil
}

// abandon closes a capture that was not begun.
func (c *capture) abandon() {
	if c != nil {
		c.r.Close()
		c.w.Close()
	}
}

// begin is called once the child has its copy of the write end.
func (c *capture) begin() {
	if c == nil {
		return
	}
	c.w.Close()
	go func() {
		defer close(c.done)
		chunk := make([]byte, 4096)
		for {
			n, err := c.r.Read(chunk)
			c.keep(chunk[:n])
			if err != nil {
				return
			}
		}
	}()
}

func (c *capture) keep(b []byte) {
	if room := c.max - len(c.buf); len(b) > room {
		b, c.cut = b[:room], true
	}
	c.buf = append(c.buf, b...)
}

// end is called after the child has ended. It does not wait for the end of the
// pipe, which a process that the runtime left behind may hold open: what the
// runtime itself wrote is in the pipe by now.
func (c *capture) end() (data []byte, cut bool) {
	if c == nil {
		return nil, false
	}
	_ = c.r.SetReadDeadline(time.Unix(1, 0))
	<-c.done
	c.drain()
	c.r.Close()
	return c.buf, c.cut
}

// drain reads what is left without waiting. It stops at a pipe's worth more
// than the limit, so that a process that keeps writing cannot hold it.
func (c *capture) drain() {
	conn, err := c.r.SyscallConn()
	if err != nil {
		return
	}
	chunk := make([]byte, 4096)
	_ = conn.Control(func(fd uintptr) {
		for !c.cut {
			n, err := unix.Read(int(fd), chunk)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 || err != nil {
				return
			}
			c.keep(chunk[:n])
		}
	})
}
