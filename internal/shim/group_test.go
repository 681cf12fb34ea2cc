package shim

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func TestGroupOf(t *testing.T) {
	for config, want := range map[string]string{
		`{}`: "id",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`:                                   "pod",
		`{"annotations":{"io.containerd.runc.v2.group":"g","io.kubernetes.cri.sandbox-id":"pod"}}`: "g",
		`{"annotations":{"io.containerd.runc.v2.group":""}}`:                                       "id",
	} {
		bundle := t.TempDir()
		writeFile(t, bundle, "config.json", config)
		if got, err := groupOf(bundle, "id"); err != nil || got != want {
			t.Errorf("%s: %q, %v", config, got, err)
		}
	}
	bundle := t.TempDir()
	if _, err := groupOf(bundle, "id"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no spec: %v", err)
	}
	writeFile(t, bundle, "config.json", "{")
	if _, err := groupOf(bundle, "id"); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("half a spec: %v", err)
	}
}

// Paths differ where any of their parts does, and fit a socket's name.
func TestSocketPath(t *testing.T) {
	long := strings.Repeat("x", 76)
	seen := map[string]bool{}
	for _, p := range [][3]string{{"/a", "ns", "g"}, {"/a", "ns", "h"}, {"/a", "ms", "g"}, {"/b", "ns", "g"}, {"/a", long, long}} {
		path := socketPath(defaultSocketDir, p[0], p[1], p[2])
		if seen[path] || filepath.Dir(path) != defaultSocketDir || len(path) > 107 {
			t.Errorf("%q: %s", p, path)
		}
		seen[path] = true
	}
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestListen(t *testing.T) {
	path := filepath.Join(socketDir(t), "new", "s")
	f, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := mode(t, filepath.Dir(path)); m != 0o700 {
		t.Errorf("directory of mode %o", m)
	}
	if m := mode(t, path); m != 0o600 {
		t.Errorf("socket of mode %o", m)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := listen(path); !errors.Is(err, errServed) {
		t.Errorf("a served socket: %v", err)
	}
	f.Close()
	if !exists(path) {
		t.Fatal("the name went with the listener")
	}
	if f, err = listen(path); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	f.Close()
	if _, err := listen(filepath.Join(path, "below")); err == nil {
		t.Error("a socket in a directory that cannot be")
	}
}

// Who listens and does not accept is busy, not gone.
func TestListenLeavesABusySocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	full := false
	for range 16 {
		conn, err := net.DialTimeout("unix", path, 20*time.Millisecond)
		if err != nil {
			full = true
			break
		}
		defer conn.Close()
	}
	if !full {
		t.Fatal("the queue of the socket does not fill")
	}
	if _, err := listen(path); !errors.Is(err, errServed) {
		t.Errorf("%v", err)
	}
	if !exists(path) {
		t.Error("its name is gone")
	}
}

func TestReadParams(t *testing.T) {
	args := Args{ID: "c", Namespace: "ns"}
	encode := func(p *bootstrap.BootstrapParams) string {
		data, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for name, c := range map[string]struct{ in, socketDir string }{ // no directory: no parameters either
		"sent":          {encode(&bootstrap.BootstrapParams{InstanceID: "c", Namespace: "ns", SocketDir: proto.String("/d")}), "/d"},
		"none":          {"", ""},
		"bare options":  {"\n\x1acontainerd.runc.v1.Options\x12\x00", ""},
		"garbage":       {"\xff\xfe\xfd", ""},
		"for another":   {encode(&bootstrap.BootstrapParams{InstanceID: "d", Namespace: "ns", SocketDir: proto.String("/d")}), ""},
		"other's space": {encode(&bootstrap.BootstrapParams{InstanceID: "c", Namespace: "ms", SocketDir: proto.String("/d")}), ""},
	} {
		got, err := readParams(strings.NewReader(c.in), args)
		if err != nil || got.GetSocketDir() != c.socketDir || (got == nil) != (c.socketDir == "") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := readParams(strings.NewReader(strings.Repeat("x", maxParams+1)), args); err == nil {
		t.Error("too much was read")
	}
	closed, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	closed.Close()
	if _, err := readParams(closed, args); err == nil {
		t.Error("a daemon that cannot be read is not noticed")
	}
}

func TestLastExit(t *testing.T) {
	good := `{"Timestamp":"2023-11-14T22:13:20.000000005Z","Pid":7,"Status":3}`
	at := time.Unix(1700000000, 5)
	bundle := t.TempDir()
	writeFile(t, bundle, "exit.json", good)
	want := &taskAPI.DeleteResponse{Pid: 7, ExitStatus: 3, ExitedAt: toTimestamp(at)}
	if got := lastExit(bundle); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for name, c := range map[string]struct {
		exit, pid string
		want      uint32
	}{
		"missing":   {"", "", 0},
		"pid known": {"", "12\n", 12},
		"garbage":   {"{", "12", 12},
		"empty":     {"{}", "12", 12},
		"no time":   {`{"Pid":7,"Status":3}`, "12", 12},
		"no pid":    {strings.Replace(good, "7,", "0,", 1), "-12", 0},
		"negative":  {strings.Replace(good, "3}", "-3}", 1), "x", 0},
		"too large": {strings.Replace(good, "7,", "70000000000,", 1), "70000000000", 0},
	} {
		bundle := t.TempDir()
		if c.exit != "" {
			writeFile(t, bundle, "exit.json", c.exit)
		}
		if c.pid != "" {
			writeFile(t, bundle, "init.pid", c.pid)
		}
		before := time.Now()
		got := lastExit(bundle)
		// Whatever was there is killed by now.
		if got.Pid != c.want || got.ExitStatus != 137 || got.ExitedAt.AsTime().Before(before) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
