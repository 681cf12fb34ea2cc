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

	"github.com/berthd/berth/internal/cli/runspec"
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
		if c.Hidden {
			continue // an OCI runtime calls it
		}
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

func TestUsageErrors(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no daemon":       {[]string{"--address", "/no/such.sock", "ps"}, 1, "nothing listens there"},
		"run, no daemon":  {[]string{"--address", "/no/such.sock", "run", "x"}, 125, "nothing listens there"},
		"flag":            {[]string{"ps", "--nosuch"}, 1, "-nosuch"},
		"flag of run":     {[]string{"run", "--memory"}, 125, "memory"},
		"verb":            {[]string{"nosuch"}, 1, "nosuch"},
		"bad volume":      {[]string{"run", "-v", "x", "image"}, 125, "/host/path:/container/path"},
		"bad pull":        {[]string{"run", "--pull", "often", "image"}, 125, "always, missing or never"},
		"bad network":     {[]string{"run", "--network", "bridge", "image"}, 125, "none, host, cni"},
		"bad opt":         {[]string{"run", "--security-opt", "x=y", "image"}, 125, "no-new-privileges"},
		"detached stdin":  {[]string{"run", "-d", "-i", "image"}, 125, "--detach excludes --interactive"},
		"bad uri":         {[]string{"run", "--log-uri", "x", "image"}, 125, "file:///"},
		"two parents":     {[]string{"run", "--cgroup", "a", "--cgroup-parent", "b", "image"}, 125, "--cgroup-parent"},
		"cpus and quota":  {[]string{"run", "--cpus", "1", "--cpu-quota", "5", "image"}, 125, "--cpus excludes --cpu-quota"},
		"cpus and period": {[]string{"run", "--cpus", "1", "--cpu-period", "5", "image"}, 125, "--cpu-period"},
		"no filter":       {[]string{"run", "--seccomp=false", "--seccomp-profile", "/f", "image"}, 125, "--seccomp-profile"},
		"two profiles":    {[]string{"run", "--apparmor-profile", "a", "--apparmor-default-profile", "b", "image"}, 125, "exclude each other"},
		"no privileges":   {[]string{"run", "--privileged-without-host-devices", "image"}, 125, "--privileged"},
		"runc's options":  {[]string{"run", "--runtime", "io.containerd.kata.v2", "--runc-binary", "x", "image"}, 125, "--runc-binary"},
		"two options":     {[]string{"run", "--runtime", "io.containerd.runc.v2", "--runtime-config-path", "/f", "--no-pivot", "image"}, 125, "--no-pivot"},
		"config of runc":  {[]string{"run", "--runtime-config-path", "/f", "image"}, 125, "--runtime"},
		"systemd cgroup":  {[]string{"run", "--runc-systemd-cgroup", "image"}, 125, "--cgroup"},
		"one id map":      {[]string{"run", "--uidmap", "0:1:1", "image"}, 125, "--gidmap"},
		"bad id map":      {[]string{"run", "--uidmap", "0:4294967295:1", "--gidmap", "0:1:1", "image"}, 125, "0:100000:65536"},
		"no root":         {[]string{"run", "--uidmap", "1:1:1", "--gidmap", "0:1:1", "image"}, 125, "id 0 is not mapped"},
		"labels":          {[]string{"run", "--remap-labels", "image"}, 125, "--uidmap"},
		"idmap":           {[]string{"run", "--mount", "type=bind,src=/tmp,dst=/t,options=rbind:idmap", "image"}, 125, "idmap needs --uidmap"},
		"bad namespace":   {[]string{"run", "--with-ns", "moon:/x", "image"}, 125, "moon:/x"},
		"namespace twice": {[]string{"run", "--with-ns", "ipc:/x", "--with-ns", "ipc:/y", "image"}, 125, "two namespaces"},
		"two networks":    {[]string{"run", "--net", "host", "--with-ns", "network:/x", "image"}, 125, "--with-ns"},
		"networks":        {[]string{"run", "--net", "host", "--cni", "image"}, 125, "exclude each other"},
		"ports of none":   {[]string{"run", "--net", "none", "-p", "1:1", "image"}, 125, "--network cni"},
		"big port":        {[]string{"run", "-p", "65536:1", "image"}, 125, "65536"},
		"big uid":         {[]string{"run", "-u", "4294967296", "image"}, 125, "4294967294"},
		"last gid":        {[]string{"run", "-u", "0:4294967295", "image"}, 125, "4294967294"},
		"big memory":      {[]string{"run", "-m", "9999999999999999999", "image"}, 125, "9999999999999999999"},
		"capability":      {[]string{"run", "--cap-add", "FLY", "image"}, 125, "capabilities(7)"},
		"short name":      {[]string{"run", "--cap-drop", "CHOWN", "image"}, 125, "(CAP_CHOWN)"},
		"bad gpu":         {[]string{"run", "--gpus", "-1", "image"}, 125, "its number"},
		"bad restart":     {[]string{"run", "-d", "--restart", "on-failure:x", "image"}, 125, "on-failure[:COUNT]"},
		"restart here":    {[]string{"run", "--restart", "always", "image"}, 125, "--detach"},
		"volatile":        {[]string{"run", "--volatile", "image"}, 125, "--rm"},
		"driver":          {[]string{"run", "-d", "--log-driver", "syslog", "image"}, 125, "json-file, or none"},
		"driver in front": {[]string{"run", "--log-driver", "none", "image"}, 125, "--detach"},
		"small log":       {[]string{"run", "-d", "--log-opt", "max-size=1", "image"}, 125, "4k"},
		"log option":      {[]string{"run", "-d", "--log-opt", "tag=x", "image"}, 125, "max-size and max-file"},
		"bad host":        {[]string{"run", "--add-host", "x", "image"}, 125, "NAME:IP"},
		"bad dns":         {[]string{"run", "--dns", "x", "image"}, 125, "IP address"},
		"block io":        {[]string{"run", "--blockio-config-file", "/f", "image"}, 125, "--blockio-class"},
		"hostname":        {[]string{"run", "--uts", "host", "--hostname", "x", "image"}, 125, "UTS namespace"},
		"workdir":         {[]string{"run", "-w", "x", "image"}, 125, "absolute path"},
		"propagation":     {[]string{"run", "--rootfs-propagation", "x", "image"}, 125, "private, slave"},
		"tail":            {[]string{"logs", "--tail", "few", "x"}, 1, "few"},
		"since":           {[]string{"logs", "--since", "soon", "x"}, 1, "soon"},
		"empty command":   {[]string{"exec", "x"}, 125, "a command is missing"},
		"two ends":        {[]string{"checkpoint", "--exit", "--leave-running", "x"}, 1, "exclude each other"},
		"dump and image":  {[]string{"checkpoint", "--image-path", "/d", "x", "y"}, 1, "--image-path"},
		"nothing saved":   {[]string{"checkpoint", "--task=false", "--exit", "x"}, 1, "--task=false"},
		"no checkpoint":   {[]string{"restore", "x"}, 1, "the checkpoint"},
		"dump and files":  {[]string{"restore", "--image-path", "/d", "--rw", "x"}, 1, "--rw"},
		"dump and name":   {[]string{"restore", "--live", "../x", "y"}, 1, "../x"},
		"format":          {[]string{"ps", "--format", "{{.nosuch}}"}, 1, "there is no .nosuch"},
		"filter":          {[]string{"events", "--filter", "color=red"}, 1, "color"},
		"password":        {[]string{"pull", "--user", "me", "x"}, 1, "password"},
	} {
		code, out, stderr := run(t, test.args...)
		if code != test.code || out != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "berth: ") || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: %d, %q, %q, want %d and one line with %q", name, code, out, stderr, test.code, test.want)
		}
	}
}

// TestDebug shows the errors that an error wraps.
func TestDebug(t *testing.T) {
	code, _, stderr := run(t, "--debug", "--address", "/no/such.sock", "ps")
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if code != 1 || len(lines) < 3 || !strings.Contains(lines[0], "nothing listens there") || !strings.HasSuffix(lines[len(lines)-1], ": unavailable") {
		t.Errorf("%d, %q", code, stderr)
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

// FuzzArguments runs the readers of single arguments over hostile texts.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{"no-new-privileges=false", "seccomp:x", "a:/b", "./a:b", "10m", "1e9", "2026-11-22", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_ = setSecurityOpt(&runspec.Security{}, s)
		if p := parsePlace(s); strings.Contains(p.id, "/") {
			t.Errorf("%q: container %q", s, p.id)
		}
		_, _ = parseMoment("since", s, time.Now())
		name := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if spec, err := readSpec(name); err == nil && (spec.Process == nil || !filepath.IsAbs(spec.Root.Path)) {
			t.Errorf("%q: %+v", s, spec)
		}
	})
}
