package ociruntime_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/ociruntime"
)

var longAgo = time.Unix(1000000000, 0)

// logging makes a runtime that appends a text to its log, prints another to
// stderr, and fails.
func logging(t *testing.T, log, stderr string) *ociruntime.Runtime {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"log": log, "stderr": stderr} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &ociruntime.Runtime{
		Binary:  script(t, "cat "+dir+"/log >> $2; cat "+dir+"/stderr >&2; exit 1"),
		LogPath: filepath.Join(t.TempDir(), "log.json"),
	}
}

func TestLogMessage(t *testing.T) {
	long := strings.Repeat("é", 5000)
	for _, f := range []struct{ name, log, stderr, want string }{
		{"last error", `{"level":"error","msg":"first"}` + "\n" + `{"level":"error","msg":"second"}` + "\n" + `{"level":"warning","msg":"third"}`, "", "second"},
		{"the one that was printed too", `{"level":"error","msg":"mine"}` + "\n" + `{"level":"error","msg":"another's"}`, "mine\n", "mine"},
		{"crun's order", `{"msg":"text","level":"error","time":"now"}`, "", "text"},
		{"fatal", `{"level":"fatal","msg":"nsexec"}`, "", "nsexec"},
		{"none: stderr", `{"level":"info","msg":"x"}`, "what it printed\n", "what it printed"},
		{"lines that are no entries", "\x00\xff\n[]\n{}\n\"x\"\nnull\n{\"level\":7,\"msg\":{}}\n{\"level\":\"error\",\"msg\":\"real\"}\n{\"level\":\"error\"", "", "real"},
		{"an entry without text", `{"level":"error","msg":"  "}`, "stderr", "stderr"},
		{"much noise before", strings.Repeat("{\"level\":\"debug\",\"msg\":\"x\"}\n", 10000) + `{"level":"error","msg":"end"}`, "", "end"},
		{"an entry without an end", strings.Repeat("x", 200<<10), "stderr", "stderr"},
		{"nothing", "", "", "ended without a word: exit status 1"},
		{"bad bytes", "", "a\xffb", "a\uFFFDb"},
		{"long", `{"level":"error","msg":"begin ` + long + ` end"}`, "", " end"},
	} {
		t.Run(f.name, func(t *testing.T) {
			err := logging(t, f.log, f.stderr).Start(ctx(t), "x")
			wantError(t, err, "start", nil, f.want)
			if text := err.Error(); len(text) > 5000 || !utf8.ValidString(text) {
				t.Errorf("a text of %d bytes", len(text))
			}
		})
	}
}

// Only what this call logged counts.
func TestLogOfEarlierCalls(t *testing.T) {
	r := logging(t, "", "")
	old := `{"level":"error","msg":"container does not exist"}` + "\n"
	if err := os.WriteFile(r.LogPath, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.Start(ctx(t), "x"), "start", nil, "without a word")
}

func TestLogDoesNotGrow(t *testing.T) {
	r := logging(t, `{"level":"error","msg":"again"}`+"\n", "")
	if err := os.WriteFile(r.LogPath, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantError(t, r.Start(ctx(t), "x"), "start", nil, "again")
	}
	if info, err := os.Stat(r.LogPath); err != nil || info.Size() > 1000 {
		t.Errorf("log: %v, %v", info, err)
	}
}

// The log of an exec is its own while it runs, and the container's after.
func TestLogOfExec(t *testing.T) {
	r := logging(t, `{"level":"error","msg":"exec failed: no"}`+"\n", "")
	dir := t.TempDir()
	args := ociruntime.ExecArgs{ID: "x", ProcessFile: filepath.Join(dir, "p.json"), PidFile: filepath.Join(dir, "pid")}
	for range 2 {
		_, err := r.Exec(ctx(t), args)
		wantError(t, err, "exec", nil, "exec failed: no")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if log, err := os.ReadFile(r.LogPath); err != nil || strings.Count(string(log), "exec failed: no") != 2 {
		t.Errorf("log is %q, %v", log, err)
	}
}

// A log that is a link is not followed.
func TestLogIsALink(t *testing.T) {
	r := logging(t, "", "")
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte(`{"level":"error","msg":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, r.LogPath); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.Start(ctx(t), "x"), "start", nil, "without a word")
}

// What runtimes say, word for word, and what it means.
func TestClasses(t *testing.T) {
	for _, f := range []struct {
		op, text string
		class    error
	}{
		{"start", "container does not exist", errdefs.ErrNotFound},
		{"start", "error opening file `/run/crun/x/status`: No such file or directory", errdefs.ErrNotFound},
		{"delete", "cannot open directory '/run/crun/x': No such file or directory", errdefs.ErrNotFound},
		{"create", "runc create failed: container with given ID already exists", errdefs.ErrAlreadyExists},
		{"create", "container `x` already exists", errdefs.ErrAlreadyExists},
		{"create", "executable file `nosuch` not found in $PATH: No such file or directory", errdefs.ErrInvalidArgument},
		{"create", "open executable: Permission denied", errdefs.ErrPermissionDenied},
		{"delete", "the container `x` is not in `created` or `stopped` state", errdefs.ErrFailedPrecondition},
		{"start", "cannot open `/run/crun/x/exec.fifo`: No such file or directory", errdefs.ErrFailedPrecondition},
		{"start", "container `x` is not running", errdefs.ErrFailedPrecondition},
		{"kill", "container not running", errdefs.ErrNotFound},
		{"kill", "unable to signal init: os: process already finished", errdefs.ErrNotFound},
		{"kill", "kill container: No such process", errdefs.ErrNotFound},
		{"kill", "unable to signal init: permission denied", errdefs.ErrPermissionDenied},
		{"pause", "container not running", errdefs.ErrFailedPrecondition},
		{"start", "cannot start a container that has stopped", errdefs.ErrFailedPrecondition},
		{"start", "cannot start a container in the paused state", errdefs.ErrFailedPrecondition},
		{"exec", "exec failed: cannot exec in a paused container (use --ignore-paused to override)", errdefs.ErrFailedPrecondition},
		{"features", "No help topic for 'features'", errdefs.ErrNotImplemented},
		{"features", "unknown command features", errdefs.ErrNotImplemented},
		{"create", "runc create failed: unable to start container process: error during container init: something new", nil},
	} {
		r := logging(t, "", f.text)
		_, err := r.State(ctx(t), "x")
		switch f.op {
		case "start":
			err = r.Start(ctx(t), "x")
		case "delete":
			err = r.Delete(ctx(t), "x", false)
		case "kill":
			err = r.Kill(ctx(t), "x", 15, false)
		case "pause":
			err = r.Pause(ctx(t), "x")
		case "features":
			_, _, err = r.Features(ctx(t))
		case "create", "exec":
			// Their stderr is the container's: only the log speaks.
			r = logging(t, `{"level":"error","msg":"`+f.text+`"}`, "noise of the container")
			pid := filepath.Join(t.TempDir(), "pid")
			if f.op == "create" {
				_, err = r.Create(ctx(t), ociruntime.CreateArgs{ID: "x", PidFile: pid})
			} else {
				_, err = r.Exec(ctx(t), ociruntime.ExecArgs{ID: "x", ProcessFile: pid + ".json", PidFile: pid})
			}
		}
		wantError(t, err, f.op, f.class, f.text)
	}
}
