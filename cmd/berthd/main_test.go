package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

const (
	patience = 60 * time.Second
	// asDaemon makes the test binary be berthd.
	asDaemon = "BERTHD_TEST_AS_DAEMON"
)

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// output is what a process wrote; it may be read meanwhile.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func berthd(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs berthd to its end.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := berthd(args...)
	var out, errs output
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// daemon is a running berthd.
type daemon struct {
	cmd    *exec.Cmd
	dir    string
	socket string
	log    *output
	exited chan struct{}
}

// start runs berthd below dir until the test ends, and waits until it serves.
func start(t *testing.T, dir string, args ...string) *daemon {
	t.Helper()
	d := &daemon{dir: dir, socket: filepath.Join(dir, "state", "berth.sock"), log: &output{}, exited: make(chan struct{})}
	d.cmd = berthd(append([]string{"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state")}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait() // the outcome is in ProcessState
		close(d.exited)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill() // it may have ended
		<-d.exited
	})
	d.poll(t, "serves", func() bool { return d.version() == nil })
	return d
}

func (d *daemon) poll(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ready() {
		select {
		case <-d.exited:
			t.Fatalf("berthd has ended before it %s: %s", what, d.log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("berthd never %s: %s", what, d.log)
		}
	}
}

func (d *daemon) version() error {
	c, err := client.New(d.socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = c.Version(ctx)
	return err
}

func (d *daemon) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) end(t *testing.T) int {
	t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		t.Fatalf("berthd does not end: %s", d.log)
	}
	return d.cmd.ProcessState.ExitCode()
}

// shortDir is a directory with a path that is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berthd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestStartAndStop(t *testing.T) {
	dir := shortDir(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notify.Close() }()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	d := start(t, dir, "--log-format", "json")
	heard := func() string {
		if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		n, err := notify.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if s := heard(); s != "READY=1" {
		t.Errorf("systemd hears %q first", s)
	}
	info, err := os.Stat(d.socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket is %v, %v", info, err)
	}
	if info, err := os.Stat(d.socket + ".ttrpc"); err != nil || info.Mode().Type() != os.ModeSocket {
		t.Errorf("ttrpc socket is %v, %v", info, err)
	}
	pid, err := os.ReadFile(filepath.Join(dir, "state", "berthd.pid"))
	if err != nil || strings.TrimSpace(string(pid)) != strconv.Itoa(d.cmd.Process.Pid) {
		t.Errorf("pid file says %q, %v", pid, err)
	}

	d.signal(t, syscall.SIGUSR1)
	d.poll(t, "dumps stacks", func() bool { return strings.Contains(d.log.String(), "END goroutine stack dump") })

	d.signal(t, syscall.SIGTERM)
	if code := d.end(t); code != 0 {
		t.Errorf("exit code %d: %s", code, d.log)
	}
	if s := heard(); s != "STOPPING=1" {
		t.Errorf("systemd hears %q last", s)
	}
	for _, name := range []string{"berth.sock", "berth.sock.ttrpc", "berthd.pid"} {
		if _, err := os.Lstat(filepath.Join(dir, "state", name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s stays: %v", name, err)
		}
	}
	if log := d.log.String(); !strings.Contains(log, `"msg":"berthd serves"`) || strings.Contains(log, "level=error") {
		t.Errorf("the log is %s", log)
	}
}

func TestKilledDaemonLeavesNothingInTheWay(t *testing.T) {
	dir := shortDir(t)
	first := start(t, dir)
	c, err := client.New(first.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "default"), patience)
	defer cancel()
	if _, err := c.NewContainer(ctx, "c", client.WithNewSpec()); err != nil {
		t.Fatal(err)
	}
	before, err := c.Server(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first.signal(t, syscall.SIGKILL)
	first.end(t)
	if _, err := os.Lstat(first.socket); err != nil {
		t.Fatalf("the killed daemon's socket: %v", err)
	}
	second := start(t, dir)
	c, err = client.New(second.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.LoadContainer(ctx, "c"); err != nil {
		t.Errorf("the container is lost: %v", err)
	}
	if after, err := c.Server(ctx); err != nil || after.UUID != before.UUID {
		t.Errorf("the root's uuid is %v, %v, was %v", after, err, before)
	}
}

func TestOneDaemonARoot(t *testing.T) {
	dir := shortDir(t)
	d := start(t, dir)
	pid := strconv.Itoa(d.cmd.Process.Pid)
	for _, tt := range []struct{ name, root, state, address string }{
		{"same root", "root", "state2", "sock2"},
		{"same state", "root2", "state", "sock2"},
		{"same address", "root2", "state2", "state/berth.sock"},
	} {
		in := func(name string) string { return filepath.Join(dir, name) }
		code, _, stderr := run(t, "--root", in(tt.root), "--state", in(tt.state), "--address", in(tt.address))
		if code != exitFailed || !strings.Contains(stderr, "process "+pid) {
			t.Errorf("%s: exit code %d, want %d and pid %s: %s", tt.name, code, exitFailed, pid, stderr)
		}
	}
	// Another instance beside it, with everything of its own.
	other := start(t, shortDir(t))
	if err := errors.Join(d.version(), other.version()); err != nil {
		t.Error(err)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	d := start(t, shortDir(t))
	d.signal(t, syscall.SIGINT)
	_ = d.cmd.Process.Signal(syscall.SIGINT) // it may have ended by then
	if code := d.end(t); code != 0 && code != -1 {
		t.Errorf("exit code %d: %s", code, d.log)
	}
}

func TestBadUsage(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		t.Helper()
		path := filepath.Join(dir, fmt.Sprintf("%d.toml", time.Now().UnixNano()))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown flag", []string{"--rooot", "/x"}, "rooot"},
		{"unknown command", []string{"serve"}, `unknown command "serve"`},
		{"missing file", []string{"--config", filepath.Join(dir, "none")}, "no such file"},
		{"unknown key", []string{"--config", file("root = '/x'\n[shim]\nshared = true\n")}, `:3:1: unknown key "shim.shared"`},
		{"syntax", []string{"--config", file("root = \n")}, ".toml:1:"},
		{"type", []string{"--config", file("[events]\nqueue = 'many'\n")}, ".toml:2:"},
		{"duration", []string{"--config", file("[shim]\nlinger = '5 bells'\n")}, "5 bells"},
		{"level", []string{"--log-level", "loud"}, `log.level "loud"`},
		{"format", []string{"--log-format", "xml"}, `log.format "xml"`},
		{"sharing", []string{"--config", file("[shim]\nsharing = 'all'\n")}, `shim.sharing "all"`},
		{"negative", []string{"--config", file("[transfer]\nmax_concurrent_downloads = -1\n")}, "transfer.max_concurrent_downloads -1"},
		{"tcp without certificates", []string{"--config", file("[tcp]\naddress = '127.0.0.1:0'\n")}, "tcp.address needs tcp.ca"},
		{"huge file", []string{"--config", file(strings.Repeat("#", maxConfigSize+1))}, "larger than"},
	} {
		code, stdout, stderr := run(t, tt.args...)
		if code != exitUsage || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "berthd: ") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q, want %d and one line with %q", tt.name, code, stdout, stderr, exitUsage, tt.want)
		}
	}
}

func TestConfigs(t *testing.T) {
	code, text, stderr := run(t, "config", "default")
	if code != 0 {
		t.Fatal(stderr)
	}
	packaged, err := os.ReadFile("../../packaging/berthd.toml")
	if err != nil || string(packaged) != text {
		t.Errorf("packaging/berthd.toml is not what \"berthd config default\" prints: %v", err)
	}
	// The default, read as a file, is the default.
	path := filepath.Join(t.TempDir(), "berthd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, again, stderr := run(t, "--config", path, "config", "dump"); code != 0 || again != text {
		t.Errorf("the default does not survive: %s\n%s", again, stderr)
	}

	// Flags win over the file.
	if err := os.WriteFile(path, []byte("root = '/file/root'\nstate = '/file/state'\n[log]\nlevel = 'warn'\n[shim]\nlinger = '90s'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, dumped, stderr := run(t, "--config", path, "--root", "/flag/root", "--log-level", "debug", "config", "dump")
	for _, want := range []string{"root = '/flag/root'", "state = '/file/state'", "level = 'debug'", "linger = '1m30s'"} {
		if !strings.Contains(dumped, want) {
			t.Errorf("the configuration lacks %s: %s%s", want, dumped, stderr)
		}
	}
	if code, version, _ := run(t, "--version"); code != 0 || !strings.HasPrefix(version, "berthd version ") {
		t.Errorf("version is %q", version)
	}
}

func TestPublish(t *testing.T) {
	d := start(t, shortDir(t))
	c, err := client.New(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ch, errs := c.Subscribe(ctx)
	payload, err := typeurl.MarshalAnyToProto(&eventsapi.TaskExit{ContainerID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	event, err := proto.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	// The subscription begins some time after the call.
	for seen := false; !seen; {
		cmd := berthd("--address", d.socket, "publish", "--topic", "/tasks/exit", "--namespace", "red")
		cmd.Stdin = bytes.NewReader(event)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("publish: %v: %s", err, out)
		}
		select {
		case env := <-ch:
			seen = true
			if env.Namespace != "red" || env.Topic != "/tasks/exit" || env.Event.GetTypeUrl() != payload.TypeUrl {
				t.Errorf("event is %v", env)
			}
		case err := <-errs:
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	cmd := berthd("--address", d.socket, "publish", "--topic", "bad", "--namespace", "red")
	cmd.Stdin = bytes.NewReader(event)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "topic") {
		t.Errorf("a bad topic gives %v: %s", err, out)
	}
}

func TestProfiles(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "debug.sock")
	path := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(path, []byte("[debug]\naddress = '"+socket+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := start(t, dir, "--config", path)
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("debug socket is %v, %v", info, err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://berthd/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "goroutine profile") {
		t.Errorf("profile is %q, %v", body, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	d.signal(t, syscall.SIGTERM)
	if code := d.end(t); code != 0 {
		t.Errorf("exit code %d: %s", code, d.log)
	}
}
