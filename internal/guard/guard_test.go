package guard

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
)

const limit = 60 * time.Second

// The test binary plays the guard and the shim as well, in processes of their
// own: both become what the process tree makes of them.
func TestMain(m *testing.M) {
	switch os.Getenv("GUARD_TEST_ROLE") {
	case "guard":
		os.Exit(playGuard())
	case "shim":
		os.Exit(playShim())
	}
	os.Exit(m.Run())
}

func playGuard() int {
	listener := os.NewFile(3, "listener")
	err := Run(Config{
		Listener: listener,
		Log:      slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Command: func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "GUARD_TEST_ROLE=shim")
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			return cmd
		},
		OnServing: func() error { fmt.Println("serving"); return nil },
	})
	if err != nil {
		fmt.Println("guard:", err)
		return 1
	}
	fmt.Println("guard done")
	return 0
}

// playShim does what the lines in the FIFO $GUARD_TEST_ORDERS say, one
// life after the other, and prints what it sees.
func playShim() int {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1
	}
	if os.Getenv("GUARD_TEST_BROKEN") != "" {
		return 3
	}
	unix.CloseOnExec(4)
	c, kept, err := Connect(ctx, os.NewFile(4, "guard"), slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("shim:", err)
		return 1
	}
	fmt.Println("shim", os.Getpid())
	for name, f := range kept {
		data, _ := io.ReadAll(io.LimitReader(f, 5))
		fmt.Println("kept", name, string(data))
	}
	orders, err := os.Open(os.Getenv("GUARD_TEST_ORDERS"))
	if err != nil {
		return 1
	}
	c.Serving()
	for lines := bufio.NewScanner(orders); lines.Scan(); {
		if !obey(c, strings.Fields(lines.Text())) {
			return 0
		}
	}
	return 0
}

func obey(c *Client, order []string) bool {
	switch order[0] {
	case "keep":
		r, w, _ := os.Pipe()
		w.WriteString(order[2])
		if err := c.Keep(order[1], r); err != nil {
			fmt.Println("keep:", err)
		}
		// A reader closes; the writer and the guard's duplicate hold the bytes.
		r.Close()
		w.Close()
	case "drop":
		c.Drop(order[1])
	case "open":
		fifo, _ := unix.Open(order[2], unix.O_PATH, 0)
		fd, ok, err := c.OpenFIFO(order[1], fifo)
		unix.Close(fd)
		unix.Close(fifo)
		fmt.Println("opened", ok, err)
	case "child":
		// Its parent, the shell, ends: it is the shim's child now.
		out, _ := exec.Command("/bin/sh", "-c", "{ read x < "+order[1]+"; exit 42; } >/dev/null 2>&1 & echo $!").Output()
		fmt.Println("child", strings.TrimSpace(string(out)))
	case "claim":
		pid, _ := strconv.Atoi(order[1])
		c.Claim(pid)
	case "adopted":
		c.Adopted()
	case "status":
		pid, _ := strconv.Atoi(order[1])
		ws, ok, err := c.Status(pid)
		fmt.Println("ended", reap.StatusOf(ws), ok, err)
	case "reap":
		pid, _ := strconv.Atoi(order[1])
		c.Reap(pid)
	case "bye":
		c.Bye()
		c.Close()
		return false
	}
	fmt.Println("did", strings.Join(order, " "))
	return true
}

// play is a guard with its shim.
type play struct {
	t      *testing.T
	orders *os.File
	lines  chan string
	done   chan error
}

func start(t *testing.T, env ...string) *play {
	t.Helper()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "orders")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	orders, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), "GUARD_TEST_ROLE=guard", "GUARD_TEST_ORDERS="+fifo), env...)
	cmd.ExtraFiles = []*os.File{listener}
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &play{t: t, orders: orders, lines: make(chan string, 100), done: make(chan error, 1)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
		close(p.lines)
		p.done <- cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		orders.Close() // the shim reads the end of its orders
		for range p.lines {
		}
	})
	return p
}

func (p *play) order(words ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.orders, words...); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits for a line with this first word and returns the rest.
func (p *play) expect(word string) string {
	p.t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("the guard ended before %q", word)
			}
			p.t.Log(line)
			if first, rest, _ := strings.Cut(line, " "); first == word {
				return rest
			}
		case <-timeout:
			p.t.Fatalf("no %q within %s", word, limit)
		}
	}
}

// did waits until the shim has done what it was told.
func (p *play) did(order string) {
	p.t.Helper()
	for p.expect("did") != order {
	}
}

func (p *play) killShim(pid string) {
	p.t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
}

// What a killed shim left is there for the next one: fds with unread bytes,
// and a child that ended meanwhile, with its status.
func TestNextShimTakesOver(t *testing.T) {
	p := start(t)
	shim := p.expect("shim")
	p.expect("serving")
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	p.order("keep", "a/stdout.r", "bytes")
	p.order("keep", "b", "gone")
	p.order("drop", "b")
	p.order("child", gate)
	child := p.expect("child")
	p.order("adopted")
	p.did("adopted")
	p.killShim(shim)
	if next := p.expect("shim"); next == shim {
		t.Fatal("the same shim")
	}
	if got := p.expect("kept"); got != "a/stdout.r bytes" {
		t.Errorf("kept %q", got)
	}
	// The child ends while the guard is its parent; claimed, it stays a zombie.
	p.order("claim", child)
	p.order("adopted")
	p.did("adopted")
	w, err := os.OpenFile(gate, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	pid, _ := strconv.Atoi(child)
	waitFor(t, func() bool { return reap.IsZombie(pid) })
	for range 2 { // it stays a zombie until its exit is stored
		p.order("status", child)
		if got := p.expect("ended"); got != "42 true <nil>" {
			t.Errorf("ended %q", got)
		}
	}
	p.order("reap", child)
	waitFor(t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	p.order("bye")
	p.expect("guard")
	if err := <-p.done; err != nil {
		t.Error(err)
	}
}

// A FIFO that the guard opens for a shim has its reader over the shim's death.
func TestFIFOKeepsItsReader(t *testing.T) {
	p := start(t)
	shim := p.expect("shim")
	p.expect("serving")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	p.order("open", "start", os.DevNull)
	if got := p.expect("opened"); got != "false <nil>" {
		t.Errorf("what is no FIFO is opened: %s", got)
	}
	opened := make(chan *os.File, 1)
	go func() {
		w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // until there is a reader
		if err != nil {
			t.Error(err)
		}
		opened <- w
	}()
	p.order("open", "start", fifo)
	if got := p.expect("opened"); got != "true <nil>" {
		t.Fatalf("opened: %s", got)
	}
	w := <-opened
	p.killShim(shim)
	waitFor(t, func() bool {
		n, _ := strconv.Atoi(shim)
		return unix.Kill(n, 0) == unix.ESRCH
	})
	if _, err := w.WriteString("let go"); err != nil {
		t.Errorf("nobody reads: %v", err)
	}
	w.Close()
	if got := p.expect("kept"); got != "start let g" {
		t.Errorf("kept %q", got)
	}
	p.order("bye")
	p.expect("guard")
}

// Before the new shim has made its claims nothing is reaped, afterwards what
// it did not claim.
func TestOrphansWaitForClaims(t *testing.T) {
	p := start(t)
	shim := p.expect("shim")
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	p.order("adopted")
	p.did("adopted")
	p.order("child", gate)
	child, _ := strconv.Atoi(p.expect("child"))
	p.killShim(shim)
	p.expect("shim")
	w, err := os.OpenFile(gate, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	waitFor(t, func() bool { return reap.IsZombie(child) })
	p.order("status", os.Getpid()) // not the guard's child; and the guard has looked around since
	if got := p.expect("ended"); !strings.Contains(got, "false") {
		t.Errorf("ended %q", got)
	}
	if !reap.IsZombie(child) {
		t.Fatal("reaped before the claims were made")
	}
	p.order("adopted")
	waitFor(t, func() bool { return unix.Kill(child, 0) == unix.ESRCH })
	p.order("bye")
	p.expect("guard")
}

// A first shim that cannot serve ends the guard with an error.
func TestFirstShimFails(t *testing.T) {
	p := start(t, "GUARD_TEST_BROKEN=1")
	if got := p.expect("guard:"); !strings.Contains(got, "before it served") {
		t.Errorf("guard: %s", got)
	}
	if err := <-p.done; err == nil {
		t.Error("exit status 0")
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so within %s", limit)
		}
	}
}
