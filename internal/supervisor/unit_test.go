package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/bundle"
	"github.com/berthd/berth/task"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"containerd-shim-x-v9", "own"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	own := filepath.Join(dir, "own")
	cfg, err := Config{Root: dir, State: dir, ShimBinary: own}.complete()
	if err != nil {
		t.Fatal(err)
	}
	s := &Supervisor{cfg: cfg}
	for name, want := range map[string]runtime{
		"":                            {own, true},
		"io.containerd.berth.v2":      {own, true},
		"io.containerd.runc.v2":       {own, true},
		own:                           {own, true},
		"com.example.x.v9":            {filepath.Join(dir, "containerd-shim-x-v9"), false},
		dir + "/containerd-shim-x-v9": {dir + "/containerd-shim-x-v9", false},
	} {
		if got, err := s.resolve(name); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", name, got, err, want)
		}
	}
	for name, is := range map[string]func(error) bool{
		"com.example.none.v1": errdefs.IsNotFound,
		"/does/not/exist":     errdefs.IsNotFound,
		dir + "/data":         errdefs.IsInvalidArgument,
		"relative/path":       errdefs.IsInvalidArgument,
		"../../bin/sh":        errdefs.IsInvalidArgument,
		"single":              errdefs.IsInvalidArgument,
		".x.v9":               errdefs.IsInvalidArgument,
		"a..":                 errdefs.IsInvalidArgument,
	} {
		if got, err := s.resolve(name); !is(err) {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Root: "/r", State: "/s"}
	if c, err := good.complete(); err != nil || c.SocketDir != "/s/s" || c.Sharing != SharingNamespace || c.Timeouts.State != 2*time.Second {
		t.Errorf("%+v, %v", c, err)
	}
	long := good
	long.State = "/" + strings.Repeat("x", 60)
	if c, err := long.complete(); err != nil || c.SocketDir != "/run/berth/s" {
		t.Errorf("%+v, %v", c, err)
	}
	for what, change := range map[string]func(*Config){
		"relative root":      func(c *Config) { c.Root = "r" },
		"no state":           func(c *Config) { c.State = "" },
		"unknown sharing":    func(c *Config) { c.Sharing = "pod" },
		"long socket dir":    func(c *Config) { c.SocketDir = "/" + strings.Repeat("x", 42) },
		"relative shim path": func(c *Config) { c.ShimBinary = "shim" },
	} {
		c := good
		change(&c)
		if _, err := c.complete(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want InvalidArgument", what, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[[2]string]address{
		{"ttrpc", "unix:///run/x"}:           {socket: "/run/x"},
		{"ttrpc", "/containerd-shim/x.sock"}: {socket: "\x00/containerd-shim/x.sock"},
		{"grpc", "/run/x"}:                   {socket: "/run/x"},
		{"grpc", "unix:/run/x"}:              {socket: "/run/x"},
		{"ttrpc", "hvsock:///run/x:1024"}:    {socket: "/run/x", port: "1024"},
	} {
		if got, err := parseAddress(in[0], in[1]); err != nil || got != want {
			t.Errorf("%v: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "unix://", "unix://relative", "unix:///" + strings.Repeat("x", 107), "unix:///a\x00b", "tcp://1.2.3.4:5", "hvsock:///x", "hvsock:///x:y"} {
		if got, err := parseAddress("ttrpc", in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
	if got, err := parseAddress("grpc", "relative"); err == nil {
		t.Errorf("%+v", got)
	}
}

func TestHybridVsock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vm")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 2)
	go func() {
		for _, answer := range []string{"OK 5\nrest", "NO\n"} {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 64)
			n, _ := c.Read(buf)
			asked <- string(buf[:n])
			c.Write([]byte(answer))
			defer c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	a := address{socket: path, port: "7"}
	c, err := a.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 16)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "rest" || <-asked != "CONNECT 7\n" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if _, err := a.dial(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("refused port: %v, want Unavailable", err)
	}
}

func TestBootstrapFileRoundTrip(t *testing.T) {
	store, err := bundle.Open(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	b, err := store.Create(task.ID{Namespace: "ns", Container: "c"}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readBootstrap(b); !errdefs.IsNotFound(err) {
		t.Errorf("without a file: %v, want NotFound", err)
	}
	// Shims of containerd 1 left this.
	if err := b.WriteFile("address", []byte("unix:///run/old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := readBootstrap(b); err != nil || r.Version != 2 || r.Address != "unix:///run/old" {
		t.Errorf("bare address: %v, %v", r, err)
	}
	want, err := parseBootstrapText([]byte(`{"version":3,"address":"unix:///run/x","protocol":"TTRPC","extensions":[{"value":{"type_url":"t/x","value":"AQI="}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeBootstrap(b, want); err != nil {
		t.Fatal(err)
	}
	got, err := readBootstrap(b)
	if err != nil || got.Address != "unix:///run/x" || got.Protocol != "ttrpc" || len(got.Extensions) != 1 || string(got.Extensions[0].Value.Value) != "\x01\x02" {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", " \n", "{", `{"version":1,"address":"unix:///x","protocol":"ttrpc"}`, `{"version":2,"address":"/x","protocol":"grpc"}`, `{"version":3,"address":"unix:///x","protocol":"http"}`} {
		if r, err := parseBootstrapText([]byte(text)); err == nil {
			t.Errorf("%q gives %v", text, r)
		}
	}
}

func TestIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, ok := identify(cmd.Process.Pid)
	if !ok || !id.alive() {
		t.Fatalf("%+v does not live", id)
	}
	again, ok := parseIdentity([]byte(strconv.Itoa(id.pid) + " " + id.start + "\n"))
	if !ok || again != id {
		t.Errorf("%+v, want %+v", again, id)
	}
	later := identity{id.pid, id.start + "0"}
	if later.alive() {
		t.Error("another process of the same pid counts as alive")
	}
	if err := later.kill(); err != nil || !id.alive() {
		t.Errorf("kill of another process of the same pid: %v", err)
	}
	if err := id.kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if state, err := awaitExit(ctx, cmd.Process); err != nil || state.Success() {
		t.Errorf("%v, %v", state, err)
	}
	if id.alive() || id.kill() != nil {
		t.Error("it lives on")
	}
	for _, text := range []string{"", "1", "0 5", "-3 5", "x 5", "1 2 3"} {
		if id, ok := parseIdentity([]byte(text)); ok {
			t.Errorf("%q gives %+v", text, id)
		}
	}
}

func TestAwaitExitStopsWithItsContext(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, _ := identify(cmd.Process.Pid)
	pid := cmd.Process.Pid
	defer func() {
		id.kill()
		p, err := os.FindProcess(pid)
		if err == nil {
			p.Wait()
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := awaitExit(ctx, cmd.Process)
		done <- err
	}()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(timeout):
		t.Fatal("it waits on")
	}
}

func TestLogLevels(t *testing.T) {
	for line, want := range map[string]slog.Level{
		`time="x" level=warning msg="y"`: slog.LevelWarn,
		`time=x level=DEBUG msg=y`:       slog.LevelDebug,
		`{"level":"error","msg":"y"}`:    slog.LevelError,
		`plain text`:                     slog.LevelInfo,
		`a level of water`:               slog.LevelInfo,
		`level=`:                         slog.LevelInfo,
	} {
		if got := logLevel([]byte(line)); got != want {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

// A get of a task that is still being taken up waits for a bounded time, and a
// list shows it.
func TestBeforeLoad(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Root: dir, State: dir, Timeouts: Timeouts{Load: 50 * time.Millisecond}}
	store, err := bundle.Open(dir, dir)
	if err != nil {
		t.Fatal(err)
	}
	id := task.ID{Namespace: "ns", Container: "c"}
	if _, err := store.Create(id, nil, 0); err != nil {
		t.Fatal(err)
	}
	store.Close()
	ctx := context.Background()
	s, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List(ctx, "ns")
	if err != nil || len(list) != 1 || list[0].ID() != id {
		t.Errorf("list: %v, %v", list, err)
	}
	if st, err := list[0].State(ctx); err != nil || !st.Stale {
		t.Errorf("state: %+v, %v; want stale", st, err)
	}
	if _, err := s.Get(ctx, id); !errdefs.IsUnavailable(err) {
		t.Errorf("get: %v, want Unavailable", err)
	}
	if err := s.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("get of what no shim was started for: %v, want NotFound", err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if _, err := s.Create(ctx, id, task.CreateConfig{Runtime: "/bin/true"}); !errdefs.IsUnavailable(err) {
		t.Errorf("create after close: %v, want Unavailable", err)
	}
}

func TestCreateRefusesBadInput(t *testing.T) {
	s := &Supervisor{}
	good := task.ID{Namespace: "ns", Container: "c"}
	for what, c := range map[string]struct {
		id  task.ID
		cfg task.CreateConfig
	}{
		"id":         {task.ID{Namespace: "ns", Container: "../x"}, task.CreateConfig{}},
		"namespace":  {task.ID{Namespace: "", Container: "c"}, task.CreateConfig{}},
		"bundle":     {good, task.CreateConfig{Bundle: "/x"}},
		"stdout":     {good, task.CreateConfig{Stdio: task.Stdio{Stdout: "a\x00b"}}},
		"long stdin": {good, task.CreateConfig{Stdio: task.Stdio{Stdin: strings.Repeat("x", maxPath+1)}}},
		"mounts":     {good, task.CreateConfig{Rootfs: make([]task.Mount, maxMounts+1)}},
		"mount":      {good, task.CreateConfig{Rootfs: []task.Mount{{Source: "a\x00b"}}}},
		"spec":       {good, task.CreateConfig{Spec: []byte("{")}},
	} {
		if _, err := s.Create(context.Background(), c.id, c.cfg); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want InvalidArgument", what, err)
		}
	}
}
