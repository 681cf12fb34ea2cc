package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
)

const (
	// startTimeout bounds the first start of a shim; later ones are tried for ever.
	startTimeout = 10 * time.Second
	// A shim that lived less than quickDeath is started again after a pause
	// that doubles from minPause to maxPause.
	quickDeath = time.Second
	minPause   = 10 * time.Millisecond
	maxPause   = 5 * time.Second
)

// Config describes the shim to guard.
type Config struct {
	// Command builds the shim's command for each start. The guard adds its
	// files: fd 3 is the listening socket, fd 4 the guard's.
	Command func() *exec.Cmd
	// Listener is the group's listening socket; it stays the caller's.
	Listener *os.File
	// OnServing is called once, when the first shim serves the socket.
	OnServing func() error
	Log       *slog.Logger
}

type guard struct {
	cfg Config
	// kept are fds by name; talk's, of which one runs at a time.
	kept map[string]int

	mu      sync.Mutex
	claimed map[int]bool // guarded by mu
	adopted bool         // the living shim has made its claims, guarded by mu
	shim    *os.Process  // the living shim, nil between two, guarded by mu
}

// session is one life of a shim.
type session struct {
	conn    *net.UnixConn
	serving chan struct{} // closed by "serving"
	bye     bool          // read by run after the reader has ended
}

// Run guards until the shim says bye, or until a first shim cannot be
// started. The process becomes a child subreaper.
func Run(cfg Config) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	g := &guard{cfg: cfg, kept: map[string]int{}, claimed: map[int]bool{}}
	defer g.closeKept()

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(sigs)
	wg.Go(func() { g.signals(ctx, sigs) })

	pause := minPause
	for first := true; ; first = false {
		started := time.Now()
		served, bye, err := g.live(first)
		if bye {
			return nil
		}
		if first && !served {
			return err
		}
		if time.Since(started) > quickDeath {
			pause = minPause
		}
		cfg.Log.Warn("the shim is gone; starting another", "error", err, "lived", time.Since(started).String())
		time.Sleep(pause)
		pause = min(2*pause, maxPause)
	}
}

// live runs one shim from its start to its end. served: the first one did
// serve its socket; later ones are not asked.
func (g *guard) live(first bool) (served, bye bool, err error) {
	conn, peer, err := socketPair()
	if err != nil {
		return false, false, err
	}
	defer conn.Close()
	cmd := g.cfg.Command()
	cmd.ExtraFiles = []*os.File{g.cfg.Listener, peer}
	err = cmd.Start()
	peer.Close()
	if err != nil {
		return false, false, fmt.Errorf("start the shim: %w", err)
	}
	g.mu.Lock()
	g.shim, g.adopted = cmd.Process, false
	clear(g.claimed)
	g.mu.Unlock()

	s := &session{conn: conn, serving: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.talk(s)
	}()
	waitErr := make(chan error, 1)
	go func() { waitErr <- cmd.Wait() }()

	if first {
		timeout := time.NewTimer(startTimeout)
		defer timeout.Stop()
		select {
		case <-s.serving:
			if err := g.cfg.OnServing(); err != nil {
				g.cfg.Log.Warn("report that the shim serves", "error", err)
			}
		case err := <-waitErr:
			<-ended
			return false, s.bye && err == nil, fmt.Errorf("the shim ended before it served: %w", orExit0(err))
		case <-timeout.C:
			_ = cmd.Process.Kill() // an error says that it has ended
			err := <-waitErr
			<-ended
			return false, false, fmt.Errorf("the shim did not serve within %s: %w", startTimeout, orExit0(err))
		}
	}
	err = <-waitErr
	// The socket's other end is closed by now: talk reads what is left, then ends.
	<-ended
	g.mu.Lock()
	g.shim, g.adopted = nil, false
	g.mu.Unlock()
	return true, s.bye && err == nil, orExit0(err)
}

func orExit0(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// talk hands over what is kept, then serves the shim until it is gone. It is
// the only one that changes kept while it runs.
func (g *guard) talk(s *session) {
	for name, fd := range g.kept {
		if err := send(s.conn, fd, "kept", name); err != nil {
			g.cfg.Log.Warn("hand over a kept fd", "name", name, "error", err)
		}
	}
	if err := send(s.conn, noFile, "all"); err != nil {
		g.cfg.Log.Warn("hand over to the shim", "error", err)
	}
	for {
		fields, fd, err := receive(s.conn)
		if err != nil {
			return
		}
		if !g.handle(s, fields, fd) {
			closeFD(fd)
		}
	}
}

// handle returns true when it has taken fd over.
func (g *guard) handle(s *session, fields []string, fd int) bool {
	arg := func(i int) string {
		if i < len(fields) {
			return fields[i]
		}
		return ""
	}
	switch fields[0] {
	case "keep":
		if fd == noFile || arg(1) == "" {
			return false
		}
		g.drop(arg(1))
		g.kept[arg(1)] = fd
		return true
	case "drop":
		g.drop(arg(1))
	case "open":
		g.open(s, arg(1), arg(2), fd)
	case "claim":
		if pid, err := strconv.Atoi(arg(1)); err == nil {
			g.mu.Lock()
			g.claimed[pid] = true
			g.mu.Unlock()
		}
	case "adopted":
		g.mu.Lock()
		g.adopted = true
		g.mu.Unlock()
		g.sweep()
	case "serving":
		select {
		case <-s.serving:
		default:
			close(s.serving)
		}
	case "status":
		g.status(s, arg(1), arg(2))
	case "reap":
		g.reap(arg(1))
	case "bye":
		s.bye = true
	}
	return false
}

// open opens a FIFO, of which fd is an O_PATH, for reading. Who waits to write
// to it is let go by that, so it is done by a process that goes on reading
// whatever becomes of the shim.
func (g *guard) open(s *session, name, seq string, fd int) {
	got := noFile
	var st unix.Stat_t
	if name != "" && fd != noFile && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
		f, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			g.cfg.Log.Warn("open a FIFO for the shim", "name", name, "error", err)
		} else {
			g.drop(name)
			g.kept[name], got = f, f
		}
	}
	if err := send(s.conn, got, "opened", seq); err != nil {
		g.cfg.Log.Warn("answer the shim", "error", err)
	}
}

func (g *guard) drop(name string) {
	if fd, ok := g.kept[name]; ok {
		delete(g.kept, name)
		closeFD(fd)
	}
}

func (g *guard) closeKept() {
	for name := range g.kept {
		g.drop(name)
	}
}

func (g *guard) status(s *session, seq, pidText string) {
	answer := "none"
	if pid, err := strconv.Atoi(pidText); err == nil && pid > 0 {
		if ws, ok := reap.ChildStatus(pid); ok {
			answer = strconv.FormatUint(uint64(ws), 10)
		}
	}
	if err := send(s.conn, noFile, "ended", seq, answer); err != nil {
		g.cfg.Log.Warn("answer the shim", "error", err)
	}
}

func (g *guard) reap(pidText string) {
	pid, err := strconv.Atoi(pidText)
	if err != nil || pid <= 0 {
		return
	}
	reap.CollectChild(pid)
	g.mu.Lock()
	delete(g.claimed, pid)
	g.mu.Unlock()
}

// signals passes SIGTERM on to the shim, which ends if it has no containers.
func (g *guard) signals(ctx context.Context, sigs <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-sigs:
			if sig == unix.SIGCHLD {
				g.sweep()
				continue
			}
			g.mu.Lock()
			shim := g.shim
			g.mu.Unlock()
			if shim != nil {
				if err := shim.Signal(sig); err != nil {
					g.cfg.Log.Warn("pass a signal on to the shim", "signal", sig, "error", err)
				}
			}
		}
	}
}

// sweep reaps orphans that the living shim does not claim. While no shim
// lives, or before it has made its claims, nothing is reaped.
func (g *guard) sweep() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.adopted || g.shim == nil {
		return
	}
	children := reap.Children()
	// Listed first, asked then: children that the shim's own death has just
	// made ours are for its successor.
	if g.shim.Signal(unix.Signal(0)) != nil || reap.IsZombie(g.shim.Pid) {
		return
	}
	for _, pid := range children {
		if pid != g.shim.Pid && !g.claimed[pid] && reap.IsZombie(pid) {
			reap.CollectChild(pid)
		}
	}
}
