package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// TestCtrRun runs containers in the foreground and looks at what their
// processes see: each option must have its effect, and the output and the exit
// code must be the container's to the byte.
func TestCtrRun(t *testing.T) {
	for name, test := range map[string]struct {
		flags   []string
		command []string
		stdout  string
		stderr  string
		code    int
	}{
		"output": {
			command: []string{"sh", "-c", "echo out; echo err >&2"},
			stdout:  "out\n", stderr: "err\n",
		},
		"exit code": {
			command: []string{"sh", "-c", "exit 7"}, code: 7,
		},
		"highest exit code": {
			command: []string{"sh", "-c", "exit 255"}, code: 255,
		},
		"killed by a signal": {
			command: []string{"sh", "-c", "kill -9 $$"}, code: 137, stderr: "Killed\n",
		},
		"cwd": {
			flags: []string{"--cwd", "/home/app"}, command: []string{"pwd"}, stdout: "/home/app\n",
		},
		"env": {
			flags: []string{"--env", "A=1", "--env", "B=two words"}, command: []string{"sh", "-c", `echo "$A,$B"`},
			stdout: "1,two words\n",
		},
		"user by name": {
			flags: []string{"--user", "app"}, command: []string{"sh", "-c", "id -u; id -g"}, stdout: "1000\n1000\n",
		},
		"user by numbers": {
			flags: []string{"--user", "7:8"}, command: []string{"sh", "-c", "id -u; id -g"}, stdout: "7\n8\n",
		},
		"hostname": {
			flags: []string{"--hostname", "harbour"}, command: []string{"hostname"}, stdout: "harbour\n",
		},
		"read-only": {
			flags:   []string{"--read-only"},
			command: []string{"sh", "-c", "(echo x >/file) 2>/dev/null || echo refused"}, stdout: "refused\n",
		},
		"no network": {
			command: []string{"sh", "-c", "ls /sys/class/net"}, stdout: "lo\n",
		},
		"own pids": {
			command: []string{"sh", "-c", "echo $PPID"}, stdout: "1\n",
		},
		"no new privileges": {
			command: []string{"sh", "-c", "grep NoNewPrivs /proc/self/status"}, stdout: "NoNewPrivs:\t1\n",
		},
		"open files": {
			flags: []string{"--rlimit-nofile", "100:200"}, command: []string{"sh", "-c", "ulimit -n; ulimit -Hn"},
			stdout: "100\n200\n",
		},
		"allowed privileges": {
			flags:   []string{"--allow-new-privs"},
			command: []string{"sh", "-c", "grep NoNewPrivs /proc/self/status"}, stdout: "NoNewPrivs:\t0\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			harness.Each(t, func(t *testing.T, d *harness.Daemon) {
				r := d.CtrRun(t, test.flags, harness.Image, d.ID("run"), test.command...)
				if r.Stdout != test.stdout || r.Stderr != test.stderr || r.Code != test.code {
					t.Errorf("%s\nwant: exit code %d, stdout %q, stderr %q", r, test.code, test.stdout, test.stderr)
				}
			})
		})
	}
}

// TestCtrRunMount checks bind mounts and tmpfs, both ways and read-only.
func TestCtrRunMount(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "given"), []byte("from the host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		r := d.CtrRun(t, []string{
			"--mount", "type=bind,src=" + dir + ",dst=/data,options=rbind:rw",
			"--mount", "type=bind,src=" + dir + ",dst=/fixed,options=rbind:ro",
			"--mount", "type=tmpfs,dst=/scratch,options=size=1m",
		}, harness.Image, d.ID("mount"), "sh", "-c",
			"cat /data/given; echo made >/data/made; (echo x >/fixed/made) 2>/dev/null || echo refused; grep -c ' /scratch tmpfs ' /proc/mounts")
		if want := "from the host\nrefused\n1\n"; r.Stdout != want {
			t.Errorf("%s\nwant stdout %q", r, want)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(b) != "made\n" {
			t.Errorf("written through the mount: %q, %v", b, err)
		}
	})
}

func TestCtrRunNetHost(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		r := d.CtrRun(t, []string{"--net-host"}, harness.Image, d.ID("net"), "readlink", "/proc/self/ns/net")
		if r.Stdout != own+"\n" {
			t.Errorf("%s\nthe host's network namespace is %q", r, own)
		}
	})
}

func TestCtrRunMemoryLimit(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("memory")
		const limit = 32 << 20
		d.MustCtr(t, "run", "--detach", "--memory-limit", fmt.Sprint(limit), harness.Image, id, "sleep", "1000")
		if got := strings.TrimSpace(cgroupValue(t, d.TaskPID(t, id), "memory", "memory.limit_in_bytes", "memory.max")); got != fmt.Sprint(limit) {
			t.Errorf("memory limit of the cgroup: %s, want %d", got, limit)
		}
		remove(t, d, id)
	})
}

// TestCtrRunRootfs runs from a directory, without an image and a snapshot.
func TestCtrRunRootfs(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		rootfs := harness.Rootfs(t)
		r := d.CtrRun(t, []string{"--rootfs"}, rootfs, d.ID("rootfs"), "/bin/sh", "-c", "echo made >/made; echo done")
		if r.Code != 0 || r.Stdout != "done\n" {
			t.Error(r)
		}
		if _, err := os.Stat(filepath.Join(rootfs, "made")); err != nil {
			t.Errorf("the container did not write to the directory: %v", err)
		}
	})
}

// TestCtrRunDetached runs in the background and ends by kill and delete.
func TestCtrRunDetached(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("detached")
		pidFile := filepath.Join(t.TempDir(), "pid")
		if out := d.MustCtr(t, "run", "--detach", "--pid-file", pidFile, harness.Image, id, "sleep", "1000"); out != "" {
			t.Errorf("stdout %q, want none", out)
		}
		pid := d.TaskPID(t, id)
		if b, err := os.ReadFile(pidFile); err != nil || string(b) != fmt.Sprint(pid) {
			t.Errorf("pid file: %q, %v, want %d", b, err, pid)
		}
		if r := d.Ctr(t, "containers", "rm", id); r.Code == 0 {
			t.Error("a container with a running task was removed")
		}
		remove(t, d, id)
	})
}

// TestCtrRunTerminal drives a shell on a terminal: echo, size, a new size and
// the exit code.
func TestCtrRunTerminal(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		term := d.SpawnTerminal(t, 91, 33, d.Programs.Ctr, "run", "--rm", "--tty", harness.Image, d.ID("tty"), "sh")
		term.AwaitReply(t, "stty size", "33 91")
		term.Resize(t, 77, 22)
		term.AwaitReply(t, "stty size", "22 77")
		term.Type(t, "test -t 0 && test -t 1 && test -t 2 && echo all of $((6*7)) are terminals\n")
		term.AwaitOutput(t, "all of 42 are terminals")
		term.Type(t, "exit 9\n")
		if code := term.Wait(t); code != 9 {
			t.Errorf("exit code %d, want 9\n%q", code, term.Output())
		}
	})
}

// TestCtrRunSignals sends a signal to a client in the foreground: it goes to
// the container. It is sent again until it is seen: ctr loses one that comes
// before it listens, which may be after the container's first output.
func TestCtrRunSignals(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		p := d.Spawn(t, d.Programs.Ctr, "run", "--rm", harness.Image, d.ID("signal"),
			"sh", "-c", `trap "echo caught; exit 3" USR1; echo ready; while :; do sleep 0.05; done`)
		p.AwaitOutput(t, "ready")
		harness.Await(t, 30*time.Second, "arrival of the signal", func() bool {
			p.Signal(t, syscall.SIGUSR1)
			return strings.Contains(p.Stdout(), "caught")
		})
		if r := p.Wait(t); r.Code != 3 || !strings.HasPrefix(r.Stdout, "ready\ncaught\n") {
			t.Error(r)
		}
	})
}

// TestCtrRunDefaultCommand runs what the image says: a shell.
func TestCtrRunDefaultCommand(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		p := d.Spawn(t, d.Programs.Ctr, "run", "--rm", harness.Image, d.ID("shell"))
		p.Type(t, "echo from the shell\n")
		p.AwaitOutput(t, "from the shell\n")
		p.Type(t, "exit 3\n")
		if r := p.Wait(t); r.Code != 3 || r.Stdout != "from the shell\n" {
			t.Error(r)
		}
	})
}

// TestCtrRunStdin ends when its stdin does. The end comes after the first
// output: ctr does not pass on one that comes before the task is there.
func TestCtrRunStdin(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		p := d.Spawn(t, d.Programs.Ctr, "run", "--rm", harness.Image, d.ID("stdin"), "cat")
		p.Type(t, "one\ntwo\n")
		p.AwaitOutput(t, "two\n")
		p.CloseStdin(t)
		if r := p.Wait(t); r.Code != 0 || r.Stdout != "one\ntwo\n" {
			t.Error(r)
		}
	})
}

// TestCtrRunManyBytes sends more through a container than all buffers hold,
// and ends stdin while most of it is on its way. The container stays until the
// client has read all: containerd's client stops reading at the exit.
func TestCtrRunManyBytes(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		gate := newGate(t)
		in := numbered(1 << 17) // over 1 MiB, and no part like another
		p := d.Spawn(t, d.Programs.Ctr, "run", "--rm", "--mount", gate.mount(), harness.Image, d.ID("bytes"),
			"sh", "-c", "cat; "+gate.script(42))
		p.Type(t, in)
		p.CloseStdin(t)
		harness.Poll(30*time.Second, func() bool { return len(p.Stdout()) >= len(in) })
		gate.open(t)
		if r := p.Wait(t); r.Code != 42 || r.Stdout != in {
			t.Errorf("exit code %d, %d bytes of %d came back, the first %v, stderr %q",
				r.Code, len(r.Stdout), len(in), strings.HasPrefix(in, r.Stdout), r.Stderr)
		}
	})
}

// TestCtrRunFailures checks that what cannot run is refused and leaves nothing.
func TestCtrRunFailures(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string // in the error
	}{
		"missing command":      {[]string{harness.Image, "ID", "/no/such/program"}, "/no/such/program"},
		"missing image":        {[]string{"berth.test/none:1", "ID", "true"}, "berth.test/none:1"},
		"impossible directory": {[]string{"--cwd", "/etc/passwd/x", harness.Image, "ID", "true"}, "not a directory"},
		"missing mount": {
			[]string{"--mount", "type=bind,src=/no/such/source,dst=/x,options=rbind", harness.Image, "ID", "true"},
			"/no/such/source",
		},
		"missing runtime": {[]string{"--runtime", "io.containerd.missing.v9", harness.Image, "ID", "true"}, "missing"},
		"missing binary":  {[]string{"--runc-binary", "/no/such/runc", harness.Image, "ID", "true"}, "/no/such/runc"},
		"invalid name":    {[]string{harness.Image, "ID/..", "true"}, "identifier"},
	} {
		t.Run(name, func(t *testing.T) {
			harness.Each(t, func(t *testing.T, d *harness.Daemon) {
				args := []string{"run", "--rm"}
				for _, arg := range test.args {
					args = append(args, strings.Replace(arg, "ID", d.ID("bad"), 1))
				}
				if r := d.Ctr(t, args...); r.Code == 0 || !strings.Contains(r.Stderr, test.want) {
					t.Errorf("%s\nwant an error with %q", r, test.want)
				}
			})
		})
	}
}
