package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// asContainerd makes a command of berthd one of containerd.
func asContainerd(cmd *exec.Cmd) *exec.Cmd {
	cmd.Args[0] = "/usr/bin/" + containerdName
	return cmd
}

// runContainerd runs berthd by the name of containerd to its end.
func runContainerd(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := asContainerd(berthd(args...))
	var out, errs output
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestContainerdConfigs(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		applied    []string // lines of the dump
		named      []string // parts of the warnings
	}{
		{
			"version 1", "root = '/r1'\n[grpc]\naddress = '/run/one.sock'\ngid = 7\n[plugins.scheduler]\nmutation_threshold = 5\n[plugins.cri]\nsandbox_image = 'x'\n",
			[]string{"root = '/r1'", "address = '/run/one.sock'", "gid = 7", "mutation_threshold = 5"},
			[]string{`plugins."io.containerd.grpc.v1.cri"`, "sandbox_image"},
		},
		{
			"version 2", "version = 2\noom_score = -999\ntemp = '/t2'\n[cgroup]\npath = '/c2'\n[timeouts]\n'io.containerd.timeout.shim.load' = '5s'\n[debug]\nlevel = 'trace'\naddress = '/run/d.sock'\n[metrics]\naddress = '127.0.0.1:1338'\n" +
				"[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = '2s'\n[plugins.'io.containerd.internal.v1.restart']\ninterval = '3s'\n",
			[]string{"oom_score = -999", "temp = '/t2'", "path = '/c2'", "level = 'debug'", "address = '/run/d.sock'", "startup_delay = '2s'"},
			[]string{"timeouts io.containerd.timeout.shim.load", `plugins."io.containerd.server.v1.metrics": not known and not applied: address`},
		},
		{
			"version 3", "version = 3\n[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/s.sock'\n[proxy_plugins.stargz.exports]\nroot = '/sg'\n" +
				"[proxy_plugins.blobs]\ntype = 'content'\naddress = '/run/b.sock'\n[stream_processors.odd]\naccepts = ['a/b']\nreturns = 'c/d'\npath = 'odd'\n[plugins.'io.containerd.transfer.v1.local']\n" +
				"max_concurrent_downloads = 9\ncheck_platform_supported = true\n[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = '/run/shims'\n",
			[]string{"max_concurrent_downloads = 9", "socket_dir = '/run/shims'", "address = '/run/s.sock'", "root = '/sg'", "returns = 'c/d'"},
			[]string{`proxy_plugins."blobs" of type "content"`, "check_platform_supported"},
		},
		{
			"version 4", "version = 4\nstate = '/s4'\ndisabled_plugins = ['io.containerd.grpc.v1.tasks', 'io.containerd.grpc.v1.cri']\n" +
				"[plugins.'io.containerd.server.v1.grpc']\naddress = '/run/four.sock'\n",
			[]string{"state = '/s4'", "address = '/run/four.sock'", "address = '/run/four.sock.ttrpc'"},
			[]string{`disabled_plugins "io.containerd.grpc.v1.tasks"`},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, dump, stderr := runContainerd(t, "", "--config", writeConfig(t, tt.file), "config", "dump")
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			for _, line := range tt.applied {
				if !strings.Contains(dump, " "+line+"\n") && !strings.Contains(dump, "\n"+line+"\n") {
					t.Errorf("not applied: %s\n%s", line, dump)
				}
			}
			for _, text := range tt.named {
				if !strings.Contains(stderr, text) {
					t.Errorf("no warning names %s: %s", text, stderr)
				}
			}
			if strings.Contains(stderr, "grpc.v1.cri\", which") || strings.Contains(stderr, "restart") {
				t.Errorf("a warning for what is as it was asked: %s", stderr)
			}
			// What it prints is a file that says the same, and needs no warning.
			code, again, stderr := runContainerd(t, "", "--config", writeConfig(t, dump), "config", "migrate")
			if code != 0 || again != dump || strings.Contains(stderr, "warning") {
				t.Errorf("the printed configuration gives another one: exit code %d, %s\n%s", code, stderr, again)
			}
		})
	}
}

func TestContainerdImports(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.toml"), []byte("version = 2\n[grpc]\naddress = '/run/imported.sock'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(path, []byte("version = 2\nroot = '/imports'\nimports = ['a.*']\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, dump, stderr := runContainerd(t, "", "--config", path, "config", "dump")
	for _, want := range []string{"root = '/imports'", "address = '/run/imported.sock'"} {
		if !strings.Contains(dump, want) {
			t.Errorf("no %s: %s%s", want, stderr, dump)
		}
	}
}

func TestContainerdBadUsage(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"required plugin", "version = 2\nrequired_plugins = ['io.containerd.grpc.v1.cri']\n", "Berth has no io.containerd.grpc.v1.cri"},
		{"newer version", "version = 9\n", "version"},
		{"wrong type", "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = 5\n", "wrong type"},
		{"level", "version = 2\n[debug]\nlevel = 'loud'\n", `log.level "loud"`},
	} {
		code, _, stderr := runContainerd(t, "", "--config", writeConfig(t, tt.file), "config", "dump")
		if last := stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:]; code != exitUsage || !strings.HasPrefix(last, "containerd: ") || !strings.Contains(last, tt.want) {
			t.Errorf("%s: exit code %d, stderr %q, want %d and %q", tt.name, code, stderr, exitUsage, tt.want)
		}
	}
	if code, _, stderr := runContainerd(t, "", "--config", "/none.toml"); code != exitUsage || !strings.Contains(stderr, "/none.toml") {
		t.Errorf("a missing file: exit code %d: %s", code, stderr)
	}
}

// A rig that starts "containerd" with flags and a file of version 2 gets a
// daemon that serves.
func TestServesAsContainerd(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "c.sock")
	config := writeConfig(t, "version = 2\n[plugins.'io.containerd.nri.v1.nri']\nplugin_path = '/opt/nri'\n")
	d := &daemon{dir: dir, socket: socket, log: &output{}, exited: make(chan struct{})}
	d.cmd = asContainerd(berthd("--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"),
		"--address", socket, "--log-level", "trace"))
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
	if _, err := os.Stat(socket + ".ttrpc"); err != nil {
		t.Errorf("no socket for shims: %v", err)
	}
	c, err := client.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if ok, err := c.IsServing(ctx); err != nil || !ok {
		t.Errorf("health: %v, %v", ok, err)
	}
	d.signal(t, syscall.SIGTERM)
	if code := d.end(t); code != 0 || !strings.Contains(d.log.String(), "io.containerd.nri.v1.nri") {
		t.Errorf("exit code %d, want 0 and a warning about NRI: %s", code, d.log)
	}
}

func TestOCIHook(t *testing.T) {
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(`{"root":{"path":"rootfs"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(specs.State{ID: "c1", Pid: 42, Bundle: bundle, Status: specs.StateCreated, Annotations: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOOK_ROOT", "{{rootfs}}")
	code, out, stderr := runContainerd(t, string(state), "oci-hook", "--", "sh", "-c", `echo "$1 $2 $HOOK_ROOT"; exit 3`, "--",
		"{{id}}-{{pid}}-{{status}}", `{{annotation "k"}}`)
	if want := "c1-42-created v " + filepath.Join(bundle, "rootfs") + "\n"; code != 3 || out != want {
		t.Errorf("exit code %d, output %q, want 3 and %q: %s", code, out, want, stderr)
	}
	for _, tt := range []struct{ stdin, arg, want string }{
		{"no json", "true", "state on standard input"},
		{string(state), "{{none}}", "none"},
		{string(state), "/nowhere/program", "no such file"},
	} {
		if code, _, stderr := runContainerd(t, tt.stdin, "oci-hook", tt.arg); code != exitFailed || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit code %d: %s", tt.arg, code, stderr)
		}
	}
}
