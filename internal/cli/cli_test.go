package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/urfave/cli/v3"
)

// run runs a command line that needs no daemon, and returns what it printed.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	app := &App{Stdin: in, Stdout: files[0], Stderr: files[1]}
	code = app.Run(context.Background(), append([]string{"berth"}, args...))
	var text [2]string
	for i, f := range files {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		text[i] = string(data)
	}
	return code, text[0], text[1]
}

// TestHelp wants a page with an example for every verb, and no flag twice.
func TestHelp(t *testing.T) {
	app := &App{}
	var verbs [][]string
	for _, c := range app.root().Commands {
		verbs = append(verbs, []string{c.Name})
		for _, sub := range c.Commands {
			verbs = append(verbs, []string{c.Name, sub.Name})
		}
	}
	if len(verbs) < 23 {
		t.Errorf("%d verbs", len(verbs))
	}
	for _, verb := range verbs {
		code, out, stderr := run(t, append(verb, "--help")...)
		if code != 0 || stderr != "" || !strings.Contains(out, "USAGE") {
			t.Errorf("%v --help: %d, %q", verb, code, stderr)
		}
		if verb[0] != "image" && !strings.Contains(out, "Example") {
			t.Errorf("%v --help has no example", verb)
		}
	}
	for _, c := range app.root().Commands {
		seen := map[string]bool{}
		for _, f := range c.Flags {
			for _, name := range f.Names() {
				if seen[name] {
					t.Errorf("%s: two flags --%s", c.Name, name)
				}
				seen[name] = true
			}
		}
	}
}

// TestCtrFlags has the flags of containerd's own tool under its names.
func TestCtrFlags(t *testing.T) {
	app := &App{}
	have := map[string]bool{}
	for _, f := range app.runCommand().Flags {
		for _, name := range f.Names() {
			have[name] = true
		}
	}
	for _, name := range []string{
		"rm", "detach", "null-io", "log-uri", "fifo-dir", "cgroup", "platform", "dump-config",
		"privileged-without-host-devices", "cpus", "cpu-shares", "cpuset-cpus", "cpuset-mems", "rlimit-nofile",
		"runtime", "runtime-config-path", "runc-binary", "runc-root", "runc-systemd-cgroup", "snapshotter",
		"snapshotter-label", "config", "cwd", "env", "env-file", "label", "annotation", "mount", "net-host",
		"privileged", "read-only", "tty", "with-ns", "pid-file", "allow-new-privs", "memory-limit", "cap-add",
		"cap-drop", "seccomp", "seccomp-profile", "apparmor-profile", "rdt-class", "hostname", "user", "rootfs",
		"no-pivot", "cpu-quota", "cpu-period", "rootfs-propagation", "device",
	} {
		if !have[name] {
			t.Errorf("run has no --%s", name)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no daemon":      {[]string{"--address", "/no/such.sock", "ps"}, 1, "nothing listens there"},
		"run, no daemon": {[]string{"--address", "/no/such.sock", "run", "x"}, 125, "nothing listens there"},
		"flag":           {[]string{"ps", "--nosuch"}, 1, "-nosuch"},
		"flag of run":    {[]string{"run", "--memory"}, 125, "memory"},
		"verb":           {[]string{"nosuch"}, 1, "nosuch"},
		"bad volume":     {[]string{"run", "-v", "x", "image"}, 125, "/host/path:/container/path"},
		"bad pull":       {[]string{"run", "--pull", "often", "image"}, 125, "always, missing or never"},
		"bad network":    {[]string{"run", "--network", "bridge", "image"}, 125, "none or host"},
		"bad opt":        {[]string{"run", "--security-opt", "x=y", "image"}, 125, "no-new-privileges"},
		"detached stdin": {[]string{"run", "-d", "-i", "image"}, 125, "--detach excludes --interactive"},
		"bad uri":        {[]string{"run", "--log-uri", "x", "image"}, 125, "file:///"},
		"two parents":    {[]string{"run", "--cgroup", "a", "--cgroup-parent", "b", "image"}, 125, "--cgroup-parent"},
		"tail":           {[]string{"logs", "--tail", "few", "x"}, 1, "few"},
		"empty command":  {[]string{"exec", "x"}, 125, "a command is missing"},
		"password":       {[]string{"pull", "--user", "me", "x"}, 1, "password"},
	} {
		code, out, stderr := run(t, test.args...)
		if code != test.code || out != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "berth: ") || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: %d, %q, %q, want %d and one line with %q", name, code, out, stderr, test.code, test.want)
		}
	}
}

// TestSilentDaemon does not wait for ever for one that accepts and says nothing.
func TestSilentDaemon(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, _, stderr := run(t, "--address", sock, "--timeout", "200ms", "ps")
	if code != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "no answer in time") {
		t.Errorf("%d, %q", code, stderr)
	}
}

func TestInvokeCode(t *testing.T) {
	const pre = `container "x": failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: `
	for text, want := range map[string]int{
		pre + `exec: "nosuch": executable file not found in $PATH: unknown`:                                 codeNotFound,
		pre + `error during container init: exec: "/x": stat /x: no such file or directory`:                 codeNotFound,
		pre + `exec: "/etc": is a directory: permission denied`:                                             codeInvoke,
		pre + `error during container init: exec: "/x": permission denied`:                                  codeInvoke,
		pre + `error mounting "/a" to rootfs at "/b": no such file or directory`:                            codeEngine,
		pre + `chdir to cwd ("/x") set in config.json failed: permission denied`:                            codeEngine,
		"OCI runtime create failed: executable file `nosuch` not found in $PATH: No such file or directory": codeNotFound,
		`image "x": not found`:                       codeEngine,
		`OCI runtime create failed: something broke`: codeEngine,
	} {
		if got := invokeCode(errors.New(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestSeekLines(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	for _, test := range []struct {
		text string
		n    int64
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb\n", 0, ""},
		{"", 3, ""},
		{"\n\n\n", 2, "\n\n"},
		{"a\n" + long + "\nz\n", 2, long + "\nz\n"},
	} {
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := seekLines(f, test.n); err != nil {
			t.Error(err)
		}
		if got, _ := io.ReadAll(f); string(got) != test.want {
			t.Errorf("last %d lines of %.20q: %.20q", test.n, test.text, got)
		}
		f.Close()
	}
}

func TestNames(t *testing.T) {
	alpine, err := reference.ParseNormalizedNamed("alpine")
	if err != nil {
		t.Fatal(err)
	}
	def := reference.Domain(alpine)
	for in, want := range map[string]string{
		"alpine": def + "/library/alpine:latest", "a/b:1": def + "/a/b:1", "localhost:5000/x": "localhost:5000/x:latest",
	} {
		if got, err := fullName(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := fullName("UPPER"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("UPPER: %v", err)
	}
	for in, want := range map[string]bool{
		"localhost/x": true, "localhost:5000/x": true, "127.0.0.1:1/x": true, "[::1]:1/x": true,
		"alpine": false, "10.0.0.1:1/x": false, "localhost.example/x": false,
	} {
		if got := loopback(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// TestDescribeContainer joins record and task into docker's words.
func TestDescribeContainer(t *testing.T) {
	now := time.Now()
	with := func(r record) *containers.Container {
		c := &containers.Container{ID: "x"}
		if err := r.put(c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, test := range map[string]struct {
		c    *containers.Container
		p    *tasktypes.Process
		want string
	}{
		"new":              {with(record{}), nil, "Created"},
		"ran in front":     {with(record{Exit: &exitRecord{Status: 3, At: now.Add(-2 * time.Minute)}}), nil, "Exited (3) 2 minutes ago"},
		"lost":             {with(record{Detached: true}), nil, "Exited"},
		"task not started": {with(record{}), &tasktypes.Process{Status: tasktypes.Status_CREATED}, "Created"},
		"foreign":          {&containers.Container{ID: "x"}, &tasktypes.Process{Status: tasktypes.Status_UNKNOWN}, "Unknown"},
	} {
		row := describeContainer(test.c, test.p)
		if got := statusText(&row, now); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	row := describeContainer(with(record{}), &tasktypes.Process{Status: tasktypes.Status_RUNNING, Pid: uint32(os.Getpid())})
	if got := statusText(&row, now.Add(time.Hour)); !strings.HasPrefix(got, "Up ") {
		t.Errorf("a running process: %q", got)
	}
}

// TestRecordIsNoLabel reads notes from nowhere but the extension.
func TestRecordIsNoLabel(t *testing.T) {
	c := &containers.Container{ID: "x", Labels: map[string]string{recordKey: `{"log":"/etc/shadow"}`}}
	if r, err := readRecord(c); err != nil || r.Log != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\nc\u009bd é"); strings.ContainsAny(got, "\x1b\n\u009b") || !strings.Contains(got, "é") {
		t.Errorf("%q", got)
	}
	if got := size(1536); got != "1.5 KiB" {
		t.Error(got)
	}
	if got := span(90 * time.Minute); got != "1 hour" {
		t.Error(got)
	}
}

// TestPlanIsComplete reads every flag of run without a daemon.
func TestPlanIsComplete(t *testing.T) {
	var p *plan
	app := &App{}
	cmd := app.runCommand()
	quiet(cmd)
	cmd.Action = func(_ context.Context, cmd *cli.Command) (err error) {
		p, err = newPlan(cmd)
		return err
	}
	err := cmd.Run(context.Background(), []string{
		"run", "-it", "--name", "n", "-e", "A=1,2", "-m", "64m", "--cpus", "1.5", "-v", "/tmp:/t:ro", "--ulimit", "nofile=1:2",
		"--cgroup-parent", "/p", "--security-opt", "no-new-privileges=false", "--stop-timeout", "0", "--runc-binary", "crun",
		"-l", "k=v", "--network", "host", "image", "sh", "-c", "exit 1",
	})
	if err != nil {
		t.Fatal(err)
	}
	o := p.spec
	if p.image != "image" || strings.Join(o.Process.Args, " ") != "sh -c exit 1" || !o.Process.Terminal || o.Process.Env[0] != "A=1,2" ||
		o.Resources.Memory != 64<<20 || o.Resources.CPUs != 1.5 || len(o.Mounts) != 1 || len(o.Process.Rlimits) != 1 ||
		o.Isolation.Cgroup != "/p/n" || !o.Isolation.HostNetwork || !o.Security.AllowNewPrivileges || p.stopTimeout == nil ||
		p.runtimeOptions == nil || p.labels["k"] != "v" {
		t.Errorf("%+v", p)
	}
}
