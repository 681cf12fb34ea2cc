package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/berthd/berth/test/harness"
)

// TestBerthRun checks the options of `berth run` by what the process sees.
func TestBerthRun(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	envFile := filepath.Join(dir, "env")
	if err := os.WriteFile(envFile, []byte("# note\nFILE=1\nBOTH=file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for name, test := range map[string]struct {
		flags   []string
		command []string
		stdin   string
		stdout  string
		stderr  string
		code    int
	}{
		"both outputs":        {command: sh("echo out; echo err >&2; exit 42"), stdout: "out\n", stderr: "err\n", code: 42},
		"no stdin without -i": {stdin: "lost", command: []string{"cat"}},
		"stdin":               {flags: []string{"-i"}, stdin: "one\ntwo\n", command: []string{"cat"}, stdout: "one\ntwo\n"},
		"a lot of stdin": {
			flags: []string{"-i"}, stdin: strings.Repeat("x", 1<<20), command: []string{"wc", "-c"}, stdout: "1048576\n",
		},
		"a lot of output": {command: sh("head -c 5000000 /dev/zero | tr '\\0' y"), stdout: strings.Repeat("y", 5000000)},
		"environment": {
			flags:   []string{"--env-file", envFile, "-e", "BOTH=flag", "-e", "TERM", "-e", "NOT_SET_HERE"},
			command: sh(`echo "$FILE $BOTH $TERM ${NOT_SET_HERE-none}"`), stdout: "1 flag xterm none\n",
		},
		"flags after the image are the command's": {command: []string{"echo", "-d", "--rm"}, stdout: "-d --rm\n"},
		"workdir":         {flags: []string{"-w", "/home/app"}, command: []string{"pwd"}, stdout: "/home/app\n"},
		"user by name":    {flags: []string{"-u", "app"}, command: sh("id -u; id -g"), stdout: "1000\n1000\n"},
		"user by number":  {flags: []string{"-u", "7:8"}, command: sh("id -u; id -g"), stdout: "7\n8\n"},
		"entrypoint":      {flags: []string{"--entrypoint", "echo"}, command: []string{"arg"}, stdout: "arg\n"},
		"hostname":        {flags: []string{"--hostname", "harbour"}, command: []string{"hostname"}, stdout: "harbour\n"},
		"name is host":    {flags: []string{"--name", d.ID("h")}, command: []string{"hostname"}, stdout: d.ID("h") + "\n"},
		"read-only":       {flags: []string{"--read-only"}, command: sh("(echo x >/f) 2>/dev/null || echo refused"), stdout: "refused\n"},
		"tmpfs":           {flags: []string{"--tmpfs", "/scratch:size=1m"}, command: sh("grep -c ' /scratch tmpfs .*noexec' /proc/mounts"), stdout: "1\n"},
		"shm size":        {flags: []string{"--shm-size", "2m"}, command: sh("df -k /dev/shm | tail -1 | awk '{print $2}'"), stdout: "2048\n"},
		"volume":          {flags: []string{"-v", dir + ":/data:ro"}, command: sh("cat /data/env | tail -1; (echo x >/data/f) 2>/dev/null || echo refused"), stdout: "BOTH=file\nrefused\n"},
		"docker's mount":  {flags: []string{"--mount", "type=bind,source=" + dir + ",target=/data,readonly"}, command: sh("tail -1 /data/env"), stdout: "BOTH=file\n"},
		"ulimit":          {flags: []string{"--ulimit", "nofile=100:200"}, command: sh("ulimit -n; ulimit -Hn"), stdout: "100\n200\n"},
		"seccomp":         {command: sh("grep '^Seccomp:' /proc/self/status"), stdout: "Seccomp:\t2\n"},
		"no seccomp":      {flags: []string{"--security-opt", "seccomp=unconfined"}, command: sh("grep '^Seccomp:' /proc/self/status"), stdout: "Seccomp:\t0\n"},
		"no capabilities": {flags: []string{"--cap-drop", "ALL"}, command: sh("grep CapEff /proc/self/status"), stdout: "CapEff:\t0000000000000000\n"},
		"one capability":  {flags: []string{"--cap-drop", "all", "--cap-add", "CAP_CHOWN"}, command: sh("grep CapEff /proc/self/status"), stdout: "CapEff:\t0000000000000001\n"},
		"privileges":      {command: sh("grep NoNewPrivs /proc/self/status"), stdout: "NoNewPrivs:\t1\n"},
		"more privileges": {flags: []string{"--security-opt", "no-new-privileges=false"}, command: sh("grep NoNewPrivs /proc/self/status"), stdout: "NoNewPrivs:\t0\n"},
		"own network":     {command: []string{"ls", "/sys/class/net"}, stdout: "lo\n"},
		"pids":            {command: sh("echo $$"), stdout: "1\n"},
		"null-io":         {flags: []string{"--null-io"}, command: sh("echo lost; exit 3"), code: 3},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{d.Programs.Berth, "run", "--rm"}, test.flags...)
			args = append(args, harness.Image)
			r := d.Exec(t, test.stdin, append(args, test.command...)...)
			if r.Stdout != test.stdout || r.Stderr != test.stderr || r.Code != test.code {
				t.Errorf("%.2000s\nwant: exit code %d, stdout %.200q, stderr %q", r, test.code, test.stdout, test.stderr)
			}
		})
	}
	if out := d.MustBerth(t, "ps", "-aq"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
}

// TestBerthRunLimits looks at the cgroup of a container that is started with
// limits.
func TestBerthRunLimits(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("limits")
	d.MustBerth(t, "run", "-d", "--name", id, "--memory", "32m", "--pids-limit", "20", harness.Image, "sleep", "1000")
	pid := d.TaskPID(t, id)
	if got := strings.TrimSpace(cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max")); got != fmt.Sprint(32<<20) {
		t.Errorf("memory limit: %s", got)
	}
	if got := strings.TrimSpace(cgroupValue(t, pid, "pids", "pids.max", "pids.max")); got != "20" {
		t.Errorf("pids limit: %s", got)
	}
	d.MustBerth(t, "rm", "-f", id)
}

// TestBerthRunRootfs runs from a directory and from a ready specification.
func TestBerthRunRootfs(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	rootfs := harness.Rootfs(t)
	spec := filepath.Join(t.TempDir(), "config.json")
	out := d.MustBerth(t, "run", "--rm", "--dump-config", spec, "--rootfs", rootfs, "/bin/sh", "-c", "echo made >/made; echo done")
	if out != "done\n" {
		t.Errorf("stdout %q", out)
	}
	if _, err := os.Stat(filepath.Join(rootfs, "made")); err != nil {
		t.Error(err)
	}
	if out := d.MustBerth(t, "run", "--rm", "--config", spec); out != "done\n" {
		t.Errorf("from the dumped specification: %q", out)
	}
}

// TestBerthRunTerminal drives a shell on a terminal.
func TestBerthRunTerminal(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	term := d.SpawnTerminal(t, 91, 33, d.Programs.Berth, "run", "--rm", "-it", harness.Image, "sh")
	term.AwaitReply(t, "stty size", "33 91")
	term.Resize(t, 77, 22)
	term.AwaitReply(t, "stty size", "22 77")
	term.Type(t, "test -t 0 && test -t 1 && test -t 2 && echo all of $((6*7)) are terminals\n")
	term.AwaitOutput(t, "all of 42 are terminals")
	// Ctrl-C is a byte for the container's terminal: it ends the sleep, not the
	// shell. Who says "go" becomes the sleep: the shell has nothing left to start.
	term.Type(t, "sh -c 'echo go$((1+1)); exec sleep 1000'\n")
	term.AwaitOutput(t, "go2")
	term.Type(t, "\x03")
	term.Type(t, "exit 9\n")
	if code := term.Wait(t); code != 9 {
		t.Errorf("exit code %d, want 9\n%q", code, term.Output())
	}
}

// TestBerthRunSignals sends signals to a client in the foreground.
func TestBerthRunSignals(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	p := d.Spawn(t, d.Programs.Berth, "run", "--rm", harness.Image,
		"sh", "-c", `trap "echo caught" USR1; trap "exit 7" TERM; echo ready; while :; do sleep 0.05; done`)
	p.AwaitOutput(t, "ready")
	p.Signal(t, syscall.SIGUSR1)
	p.AwaitOutput(t, "caught")
	p.Signal(t, syscall.SIGTERM)
	if r := p.Wait(t); r.Code != 7 || r.Stdout != "ready\ncaught\n" {
		t.Error(r)
	}
}

// TestBerthRunBrokenPipe takes the reader of the output away: the command ends
// and leaves nothing.
func TestBerthRunBrokenPipe(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	r := d.Exec(t, "", "/bin/sh", "-c", d.Programs.Berth+" run --rm "+harness.Image+` sh -c 'trap "exit 0" TERM; while :; do echo y; done' | head -n 1`)
	if r.Stdout != "y\n" || r.Code != 0 {
		t.Error(r)
	}
	if out := d.MustBerth(t, "ps", "-aq"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
}

// TestBerthRunDaemonRestart kills the daemon under a command in the
// foreground: output and exit code still come.
func TestBerthRunDaemonRestart(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	gate := t.TempDir()
	p := d.Spawn(t, d.Programs.Berth, "run", "--rm", "-v", gate+":/gate", harness.Image,
		"sh", "-c", `echo before; until test -e /gate/go; do sleep 0.05; done; echo after; exit 42`)
	p.AwaitOutput(t, "before")
	d.Kill(t)
	d.Boot(t)
	if err := os.WriteFile(filepath.Join(gate, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := p.Wait(t); r.Code != 42 || r.Stdout != "before\nafter\n" {
		t.Error(r)
	}
}

// TestBerthExec checks a second process in a container.
func TestBerthExec(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("exec")
	d.MustBerth(t, "run", "-d", "--name", id, "-e", "FROM=run", harness.Image, "sleep", "1000")
	for name, test := range map[string]struct {
		flags, command []string
		stdin, stdout  string
		code           int
	}{
		"code":        {command: []string{"sh", "-c", "echo $FROM; exit 9"}, stdout: "run\n", code: 9},
		"stdin":       {flags: []string{"-i"}, command: []string{"cat"}, stdin: "in\n", stdout: "in\n"},
		"environment": {flags: []string{"-e", "A=1", "-w", "/tmp"}, command: []string{"sh", "-c", "echo $A; pwd"}, stdout: "1\n/tmp\n"},
		"user":        {flags: []string{"-u", "app"}, command: []string{"id", "-u"}, stdout: "1000\n"},
		"not there":   {command: []string{"/no/such/program"}, code: 127},
		"directory":   {command: []string{"/tmp"}, code: 126},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{d.Programs.Berth, "exec"}, test.flags...)
			r := d.Exec(t, test.stdin, append(append(args, id), test.command...)...)
			if r.Code != test.code || r.Stdout != test.stdout {
				t.Errorf("%s\nwant exit code %d, stdout %q", r, test.code, test.stdout)
			}
		})
	}
	t.Run("a child in the background does not hold the command", func(t *testing.T) {
		if out := d.MustBerth(t, "exec", id, "sh", "-c", "sleep 1000 & echo started"); out != "started\n" {
			t.Errorf("stdout %q", out)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		term := d.SpawnTerminal(t, 60, 20, d.Programs.Berth, "exec", "-it", id, "sh")
		term.AwaitReply(t, "stty size", "20 60")
		term.Type(t, "exit 4\n")
		if code := term.Wait(t); code != 4 {
			t.Errorf("exit code %d\n%q", code, term.Output())
		}
	})
	d.MustBerth(t, "rm", "-f", id)
}

// TestBerthDetached follows a container in the background through its life.
func TestBerthDetached(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("back")
	if out := d.MustBerth(t, "run", "-d", "--name", id, "--stop-signal", "USR1", harness.Image, "sh", "-c",
		`trap "echo bye; exit 3" USR1; echo one; echo two; echo three; while :; do sleep 0.05; done`); out != id+"\n" {
		t.Errorf("run -d printed %q", out)
	}
	follow := d.Spawn(t, d.Programs.Berth, "logs", "-f", id)
	follow.AwaitOutput(t, "three\n")

	var rows []struct {
		ID, Image, Status string
		Command           []string
		Pid               int
		ExitCode          *int
	}
	list := func(flags ...string) int {
		t.Helper()
		out := d.MustBerth(t, append([]string{"ps", "--json"}, flags...)...)
		if err := json.Unmarshal([]byte(out), &rows); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return len(rows)
	}
	if n := list(); n != 1 || rows[0].ID != id || rows[0].Status != "running" || rows[0].Pid == 0 || rows[0].Image != harness.Image {
		t.Errorf("ps: %+v", rows)
	}
	d.MustBerth(t, "pause", id)
	if list(); rows[0].Status != "paused" {
		t.Errorf("ps of a paused container: %+v", rows)
	}
	d.MustBerth(t, "unpause", id)
	if r := d.Berth(t, "rm", id); r.Code != 1 || !strings.Contains(r.Stderr, "it is running") {
		t.Errorf("rm of what runs: %s", r)
	}
	wait := d.Spawn(t, d.Programs.Berth, "wait", id)
	d.MustBerth(t, "stop", id)
	if r := wait.Wait(t); r.Stdout != "3\n" {
		t.Error(r)
	}
	if r := follow.Wait(t); r.Stdout != "one\ntwo\nthree\nbye\n" || r.Code != 0 {
		t.Errorf("logs -f: %s", r)
	}
	if out := d.MustBerth(t, "logs", "--tail", "2", id); out != "three\nbye\n" {
		t.Errorf("logs --tail 2: %q", out)
	}
	if n := list(); n != 0 {
		t.Errorf("ps after the end: %+v", rows)
	}
	if n := list("-a"); n != 1 || rows[0].Status != "exited" || rows[0].ExitCode == nil || *rows[0].ExitCode != 3 {
		t.Errorf("ps -a: %+v", rows)
	}
	d.MustBerth(t, "start", id)
	d.MustBerth(t, "kill", id)
	d.MustBerth(t, "wait", id)
	logFile := strings.TrimSpace(d.MustBerth(t, "logs", "--path", id))
	if !strings.HasPrefix(logFile, d.Root) {
		t.Errorf("the log is at %q, outside the daemon's root", logFile)
	}
	d.MustBerth(t, "rm", id)
	if _, err := os.Stat(logFile); !os.IsNotExist(err) {
		t.Errorf("the log outlives its container: %v", err)
	}
}

// TestBerthRemoveFromEveryState removes what others leave stuck.
func TestBerthRemoveFromEveryState(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	run := func(name string) string {
		id := d.ID(name)
		d.MustBerth(t, "run", "-d", "--name", id, harness.Image, "sleep", "1000")
		return id
	}
	paused := run("paused")
	d.MustBerth(t, "pause", paused)
	killed := run("killed")
	d.MustBerth(t, "kill", killed)
	d.MustBerth(t, "wait", killed)
	created := d.ID("created")
	d.MustBerth(t, "create", "--name", created, harness.Image, "true")
	d.MustBerth(t, "rm", "-f", paused, killed, run("running"), created)
	if out := d.MustBerth(t, "ps", "-aq"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
	if r := d.Berth(t, "rm", paused); r.Code != 1 || !strings.Contains(r.Stderr, "not found") {
		t.Error(r)
	}
}

// TestBerthCreateStart runs a made container in the foreground, twice.
func TestBerthCreateStart(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("job")
	d.MustBerth(t, "create", "--name", id, harness.Image, "sh", "-c", "echo run; exit 5")
	for range 2 {
		if r := d.Berth(t, "start", "-a", id); r.Code != 5 || r.Stdout != "run\n" {
			t.Error(r)
		}
	}
	if out := d.MustBerth(t, "wait", id); out != "5\n" {
		t.Errorf("wait after the end: %q", out)
	}
	d.MustBerth(t, "rm", id)
}
