package stdio

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/task"
)

// bundle makes a bundle for runc whose init runs a script.
func bundle(t *testing.T, terminal bool, script string) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "sh"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	config := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	process := spec["process"].(map[string]any)
	process["terminal"] = terminal
	process["args"] = []string{"/bin/sh", "-c", script}
	delete(process, "rlimits")
	if text, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWithRunc runs a real container on pipes and on a terminal.
func TestWithRunc(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", terminal), func(t *testing.T) {
			checkLeaks(t)
			dir := bundle(t, terminal, `read line; echo "got $line"; echo oops >&2; test -t 1 && echo tty`)
			stdin, stdout, stderr := mkfifo(t), mkfifo(t), mkfifo(t)
			s := open(t, Config{
				Stdio: task.Stdio{Stdin: stdin, Stdout: stdout, Stderr: stderr, Terminal: terminal},
				Dir:   dir,
			})
			client := openClient(t, stdin, os.O_WRONLY)
			got := collect(t, stdout)
			id := "stdio-" + strings.ReplaceAll(filepath.Base(filepath.Dir(dir)), "/", "-")
			args := []string{"--root", filepath.Join(t.TempDir(), "runc"), "create", "--bundle", dir}
			if terminal {
				args = append(args, "--console-socket", s.ConsoleSocket())
			}
			create := exec.Command("runc", append(args, id)...)
			create.Stdin, create.Stdout, create.Stderr = s.RuntimeFiles()
			if err := create.Run(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if out, err := exec.Command("runc", args[0], args[1], "delete", "--force", id).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
			if err := s.Started(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("runc", args[0], args[1], "start", id).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			write(t, client, []byte("a line\n"))
			if !terminal {
				r := openClient(t, stderr, os.O_RDONLY)
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				wantBytes(t, "stdout", got(), []byte("got a line\n"))
				wantBytes(t, "stderr", b, []byte("oops\n"))
				mustClose(t, s)
				return
			}
			eventually(t, "the container ends", func() bool {
				out, err := exec.Command("runc", args[0], args[1], "state", id).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				return strings.Contains(string(out), `"stopped"`)
			})
			s.Exited()
			if b := string(got()); !strings.HasSuffix(b, "got a line\r\noops\r\ntty\r\n") {
				t.Fatalf("terminal: %q", b)
			}
			mustClose(t, s)
		})
	}
}
