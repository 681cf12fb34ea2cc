package autostart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test program is the daemon too, where this variable says so.
const roleVar = "BERTH_AUTOSTART_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "fail":
		fmt.Fprintln(os.Stderr, "first line")
		fmt.Fprintln(os.Stderr, "root is in use by pid 7")
		os.Exit(3)
	case "hang":
		fmt.Fprintln(os.Stderr, "thinking")
		time.Sleep(time.Hour)
	default:
		serve(role)
	}
}

// serve is a daemon: it notes its start, and serves until it is told to end.
func serve(dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

// starts lists the processes of daemons that were started, and ends them with
// the test.
func starts(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "starts"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

func config(t *testing.T, dir, role string) Config {
	t.Helper()
	t.Setenv(roleVar, role)
	t.Cleanup(func() {
		for _, s := range starts(t, dir) {
			var pid int
			if _, err := fmt.Sscan(s, &pid); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Address: filepath.Join(dir, "sock"), Binary: self,
		LogFile: filepath.Join(dir, "log", "berthd.log"), Patience: 20 * time.Second,
	}
}

// TestStartOnce starts one daemon for many commands at once, in a session of
// its own.
func TestStartOnce(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, dir)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := Start(context.Background(), cfg); err != nil {
				t.Error(err)
			}
			c, err := net.Dial("unix", cfg.Address)
			if err != nil {
				t.Error("started, but: ", err)
				return
			}
			c.Close()
		})
	}
	wg.Wait()
	pids := starts(t, dir)
	if len(pids) != 1 {
		t.Fatalf("%d daemons were started", len(pids))
	}
	out, err := exec.Command("ps", "-o", "sid=", "-p", pids[0]).Output()
	if err != nil || strings.TrimSpace(string(out)) != pids[0] {
		t.Errorf("session %s of process %s, %v", out, pids[0], err)
	}
}

// TestStartFails tells the daemon's last words.
func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, "fail")
	err := Start(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), "root is in use by pid 7") || !strings.Contains(err.Error(), cfg.LogFile) {
		t.Errorf("%v", err)
	}
}

// TestStartHangs gives up in time.
func TestStartHangs(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, "hang")
	cfg.Patience = 300 * time.Millisecond
	err := Start(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), "serves nothing") || !strings.Contains(err.Error(), "thinking") {
		t.Fatal(err)
	}
	var pid int
	_, after, _ := strings.Cut(err.Error(), "(pid ")
	if _, err := fmt.Sscanf(after, "%d", &pid); err != nil || pid < 2 {
		t.Fatalf("no process id: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestLockHeld does not start a second daemon beside a command that starts one.
func TestLockHeld(t *testing.T) {
	dir := t.TempDir()
	cfg := config(t, dir, dir)
	cfg.Patience = 200 * time.Millisecond
	unlock, err := lock(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), lockName) {
		t.Errorf("%v", err)
	}
	if n := len(starts(t, dir)); n != 0 {
		t.Errorf("%d daemons were started", n)
	}
}

func TestNoBinary(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := find(""); err == nil || !strings.Contains(err.Error(), "berthd") {
		t.Errorf("%v", err)
	}
}
