// Package reap learns how processes end.
//
// Every process that matters has a pidfd from the moment its pid is known, and
// one epoll holds them all: a pidfd that turns readable is a process that has
// ended. Its status comes from waitid(P_PIDFD) where the process is our child.
// Where it is not (a shim took it over from a dead predecessor), it comes from
// the parent through an [Ancestor], else from the kernel: /proc/PID/stat while
// nobody has reaped it, PIDFD_GET_INFO afterwards (Linux 6.15).
//
// A status is looked at first and taken away later: the zombie stays until the
// one who watches has stored the exit and says [Process.Done]. A shim that dies
// in between loses nothing, its successor finds the zombie.
//
// wait4(-1) is never called: it would steal the children of os/exec. A zombie
// keeps its pid until it is waited for, so a process that ends before [Reaper.Watch] is
// no race.
package reap

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is the end of a process.
type Exit struct {
	Pid int
	// Status is the exit code, or 128 plus the signal.
	Status int
	At     time.Time
	// Reason is set when the true status could not be learned; Status is 255.
	Reason string
}

// Unknown is the status of a process whose true status could not be learned.
const Unknown = 255

// Ancestor is a process that may be the parent of processes which we watch.
// It reaps such a child when asked and only then.
type Ancestor interface {
	// Claim tells the ancestor not to reap the process on its own.
	Claim(pid int) error
	// Status looks at the ended process and leaves it a zombie. ok is false
	// when it is not the ancestor's child.
	Status(pid int) (ws unix.WaitStatus, ok bool, err error)
	// Reap reaps the process.
	Reap(pid int) error
}

// Reaper watches processes. Close it when no process is watched any more.
type Reaper struct {
	log      *slog.Logger
	ancestor Ancestor // nil: none
	epoll    *os.File
	raw      rawReader

	mu      sync.Mutex
	watched map[int32]*Process // by pidfd, guarded by mu
	pids    map[int]int        // pid → number of watchers, guarded by mu
	holds   int                // runtime calls in flight, guarded by mu
	dirty   bool               // a sweep was put off by a hold, guarded by mu

	sweepC chan struct{}
	done   chan struct{}
	wg     sync.WaitGroup
}

type rawReader interface {
	Read(func(fd uintptr) bool) error
}

// Process is one watched process.
type Process struct {
	Pid   int
	pidfd int
	r     *Reaper
	fn    func(*Process, Exit)

	mu      sync.Mutex
	ended   bool // its exit was seen, guarded by mu
	foreign bool // it is not our child, guarded by mu
	closed  bool // the pidfd is gone, guarded by mu
}

// New starts a reaper. ancestor may be nil. The calling process should be a
// child subreaper, or orphans go past it.
func New(log *slog.Logger, ancestor Ancestor) (*Reaper, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	// Nonblocking, so that os.NewFile hands it to Go's own poller: the wait
	// below then costs a goroutine and no thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll nonblock: %w", err)
	}
	f := os.NewFile(uintptr(fd), "reap-epoll")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	r := &Reaper{
		log: log, ancestor: ancestor, epoll: f, raw: raw,
		watched: map[int32]*Process{}, pids: map[int]int{},
		sweepC: make(chan struct{}, 1), done: make(chan struct{}),
	}
	r.wg.Add(2)
	go r.loop()
	go r.sweeper()
	return r, nil
}

// Close ends the reaper. Processes still watched are forgotten: no callback
// comes any more.
func (r *Reaper) Close() error {
	close(r.done)
	err := r.epoll.Close()
	r.wg.Wait()
	r.mu.Lock()
	left := r.watched
	r.watched = map[int32]*Process{}
	r.mu.Unlock()
	for _, p := range left {
		p.Done()
	}
	return err
}

// Watch calls fn once, on a goroutine of the reaper's, when the process has
// ended; fn must not block, and must see to it that Done is called. startTime is the process's start in clock ticks since
// boot as [StartTime] gives it; 0 skips the check. A process that is gone, or
// whose pid now belongs to another, is unix.ESRCH.
func (r *Reaper) Watch(pid int, startTime uint64, fn func(*Process, Exit)) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	// The check comes after the pidfd: from here on the pid cannot change hands.
	if startTime != 0 {
		got, err := StartTime(pid)
		if err != nil || got != startTime {
			unix.Close(fd)
			return nil, fmt.Errorf("process %d is another one by now: %w", pid, unix.ESRCH)
		}
	}
	p := &Process{Pid: pid, pidfd: fd, r: r, fn: fn}
	r.mu.Lock()
	r.watched[int32(fd)] = p
	r.pids[pid]++
	r.mu.Unlock()
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
	if err := r.control(unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		p.Forget()
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return p, nil
}

// Signal sends a signal to exactly this process. unix.ESRCH once it has ended.
func (p *Process) Signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.ended {
		return unix.ESRCH
	}
	return unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
}

// Forget stops watching, whether the process has ended or not; fn may still
// come if the exit is being handled. A process that runs becomes an orphan like
// any other and is reaped when it ends.
func (p *Process) Forget() {
	p.r.unwatch(p)
	p.Done()
}

// Done says that the exit is stored: the process is reaped. It may be called
// more than once.
func (p *Process) Done() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	if p.ended && !p.foreign {
		// An error says that someone else was quicker.
		_, _ = waitPidfd(p.pidfd, 0)
	}
	tell := p.ended && p.foreign
	unix.Close(p.pidfd)
	p.mu.Unlock()
	if tell && p.r.ancestor != nil {
		if err := p.r.ancestor.Reap(p.Pid); err != nil {
			p.r.log.Warn("have a process reaped by its parent", "pid", p.Pid, "error", err)
		}
	}
	p.r.release(p.Pid)
}

func (r *Reaper) control(op, fd int, ev *unix.EpollEvent) error {
	var cerr error
	conn, err := r.epoll.SyscallConn()
	if err != nil {
		return err
	}
	if err := conn.Control(func(ep uintptr) { cerr = unix.EpollCtl(int(ep), op, fd, ev) }); err != nil {
		return err
	}
	return cerr
}

// unwatch takes the process out of the table of those that run; true for the
// one caller that found it there.
func (r *Reaper) unwatch(p *Process) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched[int32(p.pidfd)] != p {
		return false
	}
	delete(r.watched, int32(p.pidfd))
	return true
}

// release leaves the pid to the sweep.
func (r *Reaper) release(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pids[pid]--; r.pids[pid] <= 0 {
		delete(r.pids, pid)
	}
}

func (r *Reaper) loop() {
	defer r.wg.Done()
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := r.raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events, 0)
			if errors.Is(err, unix.EINTR) {
				n = 0
			}
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, ev := range events[:n] {
			r.mu.Lock()
			p := r.watched[ev.Fd]
			r.mu.Unlock()
			if p == nil || !ended(p.pidfd) {
				continue // the number of a pidfd that was closed, and maybe used again
			}
			if r.unwatch(p) {
				p.fn(p, r.collect(p))
			}
		}
	}
}

// ended asks the kernel again whether the process has ended.
func ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
}

// collect learns the status of a process that has ended, and leaves it a
// zombie.
func (r *Reaper) collect(p *Process) Exit {
	at := time.Now()
	p.mu.Lock()
	p.ended = true
	var ws unix.WaitStatus
	err := error(unix.ESRCH)
	if !p.closed {
		ws, err = waitPidfd(p.pidfd, unix.WNOWAIT)
	}
	p.foreign = errors.Is(err, unix.ECHILD)
	p.mu.Unlock()
	if err == nil {
		return Exit{Pid: p.Pid, Status: StatusOf(ws), At: at}
	}
	reason := err.Error()
	if errors.Is(err, unix.ECHILD) {
		ws, reason, err = r.collectForeign(p)
		if err == nil {
			return Exit{Pid: p.Pid, Status: StatusOf(ws), At: at}
		}
	}
	return Exit{Pid: p.Pid, Status: Unknown, At: at, Reason: "exit status of process not known: " + reason}
}

// collectForeign is for processes that are not our children.
func (r *Reaper) collectForeign(p *Process) (unix.WaitStatus, string, error) {
	reason := "it was not our child"
	if r.ancestor != nil {
		ws, ok, err := r.ancestor.Status(p.Pid)
		if err == nil && ok {
			return ws, "", nil
		}
		if err != nil {
			reason = "its parent did not answer: " + err.Error()
		}
	}
	if ws, ok := zombieStatus(p.Pid); ok {
		return ws, "", nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, reason, unix.ESRCH
	}
	ws, err := pidfdExitInfo(p.pidfd)
	if err == nil {
		return ws, "", nil
	}
	return 0, reason + "; " + err.Error(), err
}

// StatusOf turns a wait status into the number that a shell would show.
func StatusOf(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
