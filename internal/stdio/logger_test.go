package stdio

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/task"
)

// copies says that it is ready, and stores both outputs until they end. $2 is a
// prefix of its files.
const copies = `echo $$ >>"$2.pids"
echo . >&5; exec 5>&-
cat <&3 >>"$2.out" & cat <&4 >>"$2.err" & wait`

// program writes a logger and returns a config with it, and the prefix of its files.
func program(t *testing.T, scheme, script string) (Config, string) {
	t.Helper()
	path, prefix := filepath.Join(t.TempDir(), "logger"), filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	u := url.URL{Scheme: scheme, Path: path, RawQuery: "to=" + url.QueryEscape(prefix) + "&z=1&a=two%20words&z=2&empty="}
	return Config{Stdio: task.Stdio{Stdout: u.String(), Stderr: u.String()}, Namespace: "ns", ID: "one"}, prefix
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

// loggerPid is the pid of the last logger that was started.
func loggerPid(t *testing.T, prefix string) int {
	t.Helper()
	var pid int
	eventually(t, "the logger runs", func() bool {
		fields := strings.Fields(string(content(t, prefix+".pids")))
		if len(fields) > 0 {
			pid, _ = strconv.Atoi(fields[len(fields)-1])
		}
		return pid > 0
	})
	return pid
}

func TestLoggerGetsEverySize(t *testing.T) {
	for i, size := range []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			checkLeaks(t)
			cfg, prefix := program(t, []string{"binary", "binary-v2"}[i%2], copies)
			if i%3 == 0 {
				cfg.Stdio.Stderr = "" // it has both all the same
			}
			s := open(t, cfg)
			c := start(t, s)
			want := pattern(size)
			write(t, c.out, want)
			write(t, c.err, want)
			c.exit()
			mustClose(t, s)
			wantBytes(t, "stdout", content(t, prefix+".out"), want)
			wantBytes(t, "stderr", content(t, prefix+".err"), want)
		})
	}
}

func TestLoggerArgumentsAndEnvironment(t *testing.T) {
	checkLeaks(t)
	cfg, prefix := program(t, "binary", `for a; do echo "[$a]"; done >"$2.args"; tr '\0' '\n' </proc/$$/environ >"$2.env"
exec 5>&-; cat <&3`)
	s := open(t, cfg)
	start(t, s).exit()
	mustClose(t, s)
	if got, want := string(content(t, prefix+".args")), "[to]\n["+prefix+"]\n[z]\n[1]\n[a]\n[two words]\n[empty]\n[]\n"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	env := strings.Fields(string(content(t, prefix+".env")))
	slices.Sort(env)
	if want := []string{"CONTAINER_ID=one", "CONTAINER_NAMESPACE=ns"}; !slices.Equal(env, want) {
		t.Errorf("environment %q", env)
	}
}

func TestLoggerThatIsNotReady(t *testing.T) {
	for name, test := range map[string]struct {
		scheme, script string
		want           []string
		class          error
	}{
		"crash":            {"binary", "echo no such index >&2; exit 3", []string{"exit status 3", "no such index"}, errdefs.ErrFailedPrecondition},
		"crash of v2":      {"binary-v2", "kill -9 $$", []string{"signal: killed"}, errdefs.ErrFailedPrecondition},
		"crash with child": {"binary", "sleep 1000 3<&- 4<&- 5>&- 2>&- & echo $! >\"$2.pids\"; exit 4", []string{"exit status 4"}, errdefs.ErrFailedPrecondition},
		"silent v2":        {"binary-v2", "exec 5>&-; cat <&3", []string{"descriptor 5"}, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			cfg, prefix := program(t, test.scheme, test.script)
			k := newTestKeeper(t)
			cfg.Name, cfg.Keeper = "ns/c", k
			s, err := Open(testContext(t), cfg)
			if err == nil {
				closeNow(s)
				t.Fatal("it was accepted")
			}
			for _, want := range test.want {
				// The status is not known where another reaped the process.
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant %q", err, want)
				}
			}
			if !errors.Is(err, test.class) {
				t.Error(err)
			}
			if left := k.names(); len(left) > 0 {
				t.Errorf("kept: %v", left)
			}
			if name == "crash with child" {
				_ = syscall.Kill(loggerPid(t, prefix), syscall.SIGKILL)
			}
		})
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]error{
		"binary:///no/such/logger": errdefs.ErrNotFound,
		"binary://" + text:         errdefs.ErrPermissionDenied,
	} {
		if s, err := Open(testContext(t), fifoConfig(value)); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v", value, s, err)
		}
	}
	cfg, _ := program(t, "binary", copies)
	for _, stdio := range []task.Stdio{{Stderr: cfg.Stdio.Stdout}, {Stdout: cfg.Stdio.Stdout, Stderr: "file:///x"}} {
		if s, err := Open(testContext(t), Config{Stdio: stdio}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, %v", stdio, s, err)
		}
	}
}

// TestLoggerIsStartedAgain kills the logger: what is written meanwhile stays in
// the pipe.
func TestLoggerIsStartedAgain(t *testing.T) {
	checkLeaks(t)
	cfg, prefix := program(t, "binary-v2", `echo $$ >>"$2.pids"; echo . >&5; exec 5>&-; exec cat <&3 >>"$2.out"`)
	s := open(t, cfg)
	c := start(t, s)
	want := lines(20000)
	for i := 0; i < len(want); i += 5000 {
		write(t, c.out, []byte(want[i:i+5000]))
		eventually(t, "it is stored", func() bool { return len(content(t, prefix+".out")) == i+5000 })
		pid := loggerPid(t, prefix)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// What a logger has read and not stored goes with it: also one that dies.
		eventually(t, "it is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	write(t, c.out, []byte("end"))
	c.exit()
	waitDrained(t, s)
	mustClose(t, s)
	wantBytes(t, "stdout", content(t, prefix+".out"), []byte(want+"end"))
}

// TestLoggerIsEnded closes streams whose logger does not care for the end of
// its input, nor for SIGTERM the first time.
func TestLoggerIsEnded(t *testing.T) {
	checkLeaks(t)
	cfg, prefix := program(t, "binary", `trap 'echo term >>"$2.said"; exit 0' TERM
echo $$ >>"$2.pids"; exec 5>&-; while :; do sleep 0.02; done`)
	s := open(t, cfg)
	c := start(t, s)
	write(t, c.out, []byte("unread"))
	c.exit()
	pid := loggerPid(t, prefix)
	closeNow(s)
	if err := s.Close(testContext(t)); err == nil || !strings.Contains(err.Error(), "6 bytes") {
		t.Errorf("close: %v", err)
	}
	if got := string(content(t, prefix+".said")); got != "term\n" {
		t.Errorf("the logger said %q", got)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("logger %d is alive", pid)
	}
}

func TestLoggerSurvivesTheShim(t *testing.T) {
	checkLeaks(t)
	cfg, prefix := program(t, "binary", copies)
	l := born(t, cfg)
	c := start(t, l.now)
	pid := loggerPid(t, prefix)
	var want []byte
	for i := range 3 {
		chunk := bytes.Repeat([]byte{byte('a' + i)}, 100000)
		write(t, c.out, chunk)
		want = append(want, chunk...)
		// What dies here is only what holds the files: closeNow would end the logger.
		l.forgetShim()
	}
	if again := loggerPid(t, prefix); again != pid {
		t.Errorf("logger %d, was %d", again, pid)
	}
	l.wantKept("stdout.r", "stderr.r", "logger", "logger.err")
	c.exit()
	waitDrained(t, l.now)
	mustClose(t, l.now)
	wantBytes(t, "stdout", content(t, prefix+".out"), want)
	l.wantKept()
}

// forgetShim has a successor adopt while the streams of the dead shim are left as they
// are, with a logger that goes on, and closed at the end.
func (l *life) forgetShim() {
	l.t.Helper()
	l.self.dead.Store(true)
	old := l.now
	old.logger.end()
	old.logger.mu.Lock()
	proc := old.logger.proc
	old.logger.mu.Unlock()
	for _, pipe := range old.logger.pipes {
		pipe.close()
	}
	s, err := Adopt(testContext(l.t), l.next(), l.keeper.handOver(l.t, l.cfg.Name+"/"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.now = s
	l.t.Cleanup(func() { closeNow(s) })
	if proc.cmd != nil { // the guard is the parent now: it reaps
		l.t.Cleanup(func() { closeNow(old) })
	}
}

func TestLoggerOfATerminal(t *testing.T) {
	checkLeaks(t)
	cfg, prefix := program(t, "binary", copies)
	cfg.Stdio.Terminal, cfg.Stdio.Stderr, cfg.Dir = true, "", t.TempDir()
	l := born(t, cfg)
	slave := startTerminal(t, l.now, true)
	want := lines(300000)
	write(t, slave, []byte(want))
	slave.Close()
	l.now.Exited()
	mustClose(t, l.now)
	wantBytes(t, "terminal", content(t, prefix+".out"), []byte(want))
	l.wantKept()
}
