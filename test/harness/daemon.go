package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
)

// Kind says which daemon a test runs against.
type Kind string

// The daemons that a test runs against.
const (
	Stock Kind = "stock"
	Berth Kind = "berth"
)

// markVar is in the environment of a daemon and so of all that it starts.
const markVar = "BERTH_TEST_MARK"

// Config says how a daemon is to be.
type Config struct {
	// Kind of the daemon; empty means Berth.
	Kind Kind
	// Toml is appended to the configuration file, whose last table for Berth is
	// [shim].
	Toml string
	// Env is added to the environment of the daemon, NAME=VALUE each.
	Env []string
	// OwnShim gives stock containerd Berth's shim, under its own name and in the
	// place of stock's.
	OwnShim bool
	// Old takes Debian's containerd 1.6 as stock containerd, and its ctr.
	Old bool
	// RootSize puts the root directory on a file system of its own that has
	// this many bytes; 0 puts it with everything else.
	RootSize int64
	// NetNS gives the daemon, and so what it starts, a network namespace of its
	// own.
	NetNS bool
	// Linger is how long Berth's shims stay without containers; 0 means 200 ms.
	Linger time.Duration
	// NoImage leaves out the import of the test image.
	NoImage bool
	// NoLeakCheck is for a test that checks itself what may be left.
	NoLeakCheck bool
}

// Daemon is a running daemon. Its methods are for the test's own goroutine.
type Daemon struct {
	Kind      Kind
	Dir       string // all of the daemon is below it
	Root      string
	State     string
	Address   string // of the gRPC socket
	Namespace string // what clients use here; no other daemon has it
	Programs  *Binaries

	config   Config
	cmd      *exec.Cmd
	exited   chan struct{} // closed once cmd.Wait has returned
	baseline fdCount

	log          eventLog      // Berth's
	subscription *subscription // of this boot; nil while the daemon is down
}

// Each runs the test against stock containerd and then against Berth, in
// parallel with other tests.
func Each(t *testing.T, test func(t *testing.T, d *Daemon)) {
	t.Helper()
	t.Parallel()
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			test(t, Start(t, Config{Kind: kind}))
		})
	}
}

// kinds are the daemons that Each takes; BERTH_TEST_ONLY=stock or =berth
// leaves the other out while a test is written.
func kinds() []Kind {
	if only := os.Getenv("BERTH_TEST_ONLY"); only != "" {
		return []Kind{Kind(only)}
	}
	return []Kind{Stock, Berth}
}

// Start starts a daemon with directories of its own and the test image in it.
// When the test ends, it checks that nothing was left, and ends the daemon.
func Start(tb testing.TB, config Config) *Daemon {
	tb.Helper()
	if config.Kind == "" {
		config.Kind = Berth
	}
	bin, err := programs()
	if err != nil {
		tb.Fatal(err)
	}
	if config.Old {
		if err := bin.containerd16(); err != nil {
			tb.Fatal(err)
		}
	}
	mark := randomMark(tb)
	// Socket paths are short: /tmp rather than the long directory of the test.
	dir, err := os.MkdirTemp("/tmp", "bt-")
	if err != nil {
		tb.Fatal(err)
	}
	d := &Daemon{
		Kind:      config.Kind,
		Dir:       dir,
		Root:      filepath.Join(dir, "root"),
		State:     filepath.Join(dir, "run"),
		Address:   filepath.Join(dir, "d.sock"),
		Namespace: "t" + mark,
		Programs:  bin,
		config:    config,
	}
	tb.Cleanup(func() { d.finish(tb) })
	// The clients run in it: below 0700 a container's user could not reach files.
	if err := os.Chmod(dir, 0o711); err != nil {
		tb.Fatal(err)
	}
	if err := d.writeConfig(); err != nil {
		tb.Fatal(err)
	}
	if err := d.mountRoot(); err != nil {
		tb.Fatal(err)
	}
	d.Boot(tb)
	if !config.NoImage {
		d.MustCtr(tb, "images", "import", ImageTar(tb))
	}
	d.baseline = d.countFDs(tb)
	return d
}

// ID makes an identifier that no other daemon's containers have.
func (d *Daemon) ID(name string) string { return d.Namespace + "-" + name }

// Boot starts the daemon's process, after Start for a daemon that was ended
// by Term or Kill, and waits until it serves.
func (d *Daemon) Boot(tb testing.TB) {
	tb.Helper()
	log, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	d.cmd = d.command()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(d.Env(), d.config.Env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.config.NetNS {
		d.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if err := d.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	cmd, exited := d.cmd, make(chan struct{})
	d.exited = exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the state is in cmd.ProcessState
	}()
	d.awaitServing(tb)
	if d.Kind == Berth {
		d.unwatchEvents()
		d.watchEvents(tb)
	}
}

func (d *Daemon) command() *exec.Cmd {
	config := filepath.Join(d.Dir, "config.toml")
	if d.Kind == Stock {
		return exec.Command(d.Programs.Containerd, "--config", config, "--log-level", "warn")
	}
	return exec.Command(d.Programs.Berthd, "--config", config,
		"--root", d.Root, "--state", d.State, "--address", d.Address, "--log-level", "debug")
}

func (d *Daemon) awaitServing(tb testing.TB) {
	tb.Helper()
	var last error
	ok := Poll(30*time.Second, func() bool {
		select {
		case <-d.exited:
			return true
		default:
		}
		last = d.serving()
		return last == nil
	})
	select {
	case <-d.exited:
		tb.Fatalf("%s ended at once: %s\n%s", d.Kind, d.cmd.ProcessState, d.LogTail())
	default:
	}
	if !ok {
		tb.Fatalf("%s does not serve: %v\n%s", d.Kind, last, d.LogTail())
	}
}

func (d *Daemon) serving() error {
	c, err := containerd.New(d.Address, containerd.WithTimeout(time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = c.Version(ctx)
	return err
}

// PID of the daemon.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Kill ends the daemon as kill -9 does and waits for its end.
func (d *Daemon) Kill(tb testing.TB) {
	tb.Helper()
	d.end(tb, syscall.SIGKILL)
}

// Term ends the daemon as a service manager does; its exit code must be 0.
func (d *Daemon) Term(tb testing.TB) {
	tb.Helper()
	d.end(tb, syscall.SIGTERM)
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		tb.Errorf("%s ended by SIGTERM: %s, want exit code 0\n%s", d.Kind, d.cmd.ProcessState, d.LogTail())
	}
}

func (d *Daemon) end(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		tb.Fatal(err)
	}
	select {
	case <-d.exited:
	case <-time.After(30 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.exited
		tb.Fatalf("%s did not end within 30 s of %s\n%s", d.Kind, sig, d.LogTail())
	}
	d.unwatchEvents()
}

// Client returns a connection of containerd's Go client, in the daemon's
// namespace. It is closed with the test.
func (d *Daemon) Client(tb testing.TB) *containerd.Client {
	tb.Helper()
	c, err := d.dial()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

func (d *Daemon) dial() (*containerd.Client, error) {
	c, err := containerd.New(d.Address, containerd.WithDefaultNamespace(d.Namespace),
		containerd.WithTimeout(10*time.Second))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", d.Address, err)
	}
	return c, nil
}

// LogTail returns the end of what the daemon wrote.
func (d *Daemon) LogTail() string {
	b, err := os.ReadFile(d.logPath())
	if err != nil {
		return err.Error()
	}
	const keep = 8 << 10
	if len(b) > keep {
		b = b[len(b)-keep:]
	}
	return strings.TrimSpace(string(b))
}

func (d *Daemon) logPath() string { return filepath.Join(d.Dir, "daemon.log") }

func randomMark(tb testing.TB) string {
	tb.Helper()
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		tb.Fatal(err)
	}
	return hex.EncodeToString(b)
}
