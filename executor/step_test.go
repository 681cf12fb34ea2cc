package executor_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bk "github.com/moby/buildkit/executor"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/test/harness"
)

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func contains(t *testing.T, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s: %q, want %q in it", what, text, part)
	}
}

// What a step is told of its world is what it finds.
func TestStep(t *testing.T) {
	each(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		equal(t, "output", l.must(t, root, sh("echo hello")), "hello")

		r := l.run(t.Context(), root, sh("echo out; echo err >&2; exit 7"))
		equal(t, "stdout", r.out, "out\n")
		equal(t, "stderr", r.err, "err\n")
		exit, ok := errors.AsType[*gatewayapi.ExitError](r.failed)
		if !ok || exit.ExitCode != 7 {
			t.Errorf("exit code 7 is %v", r.failed)
		}
		valid := sh("exit 7")
		valid.ValidExitCodes = []int{3, 7}
		l.must(t, root, valid)

		named := sh("hostname; cat /etc/hosts; env")
		named.Hostname, named.Env = "builder", []string{"PATH=/bin", "COLOUR=blue"}
		named.ExtraHosts = []bk.HostIP{{Host: "mirror", IP: net.IPv4(10, 1, 2, 3)}}
		out := l.must(t, root, named)
		contains(t, "hostname", out, "builder\n")
		contains(t, "hosts", out, "127.0.0.1\tlocalhost builder\n")
		contains(t, "extra hosts", out, "10.1.2.3\tmirror\n")
		contains(t, "environment", out, "COLOUR=blue")

		limited := sh("ulimit -n; ulimit -Hn")
		limited.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}
		equal(t, "ulimit", l.must(t, root, limited), "100\n200")

		readonly := sh("touch /x")
		readonly.ReadonlyRootFS = true
		if r := l.run(t.Context(), root, readonly); r.failed == nil || !strings.Contains(r.err, "Read-only file system") {
			t.Errorf("read-only root: %v, %q", r.failed, r.err)
		}
		if r := l.run(t.Context(), root, bk.Meta{Args: []string{"/nonexistent"}, Cwd: "/"}); r.failed == nil ||
			!strings.Contains(r.failed.Error(), "/nonexistent") {
			t.Errorf("no such program: %v", r.failed)
		}
		// Whoever waits for the start is told of the end.
		started := make(chan struct{})
		_, err := l.Run(withNamespace(l), "", bk.Mount{Src: source(root)}, nil, bk.ProcessInfo{Meta: bk.Meta{Args: []string{"/nonexistent"}, Cwd: "/"}}, started)
		if err == nil {
			t.Error("no such program: no error")
		}
		<-started
	})
}

func TestStepUser(t *testing.T) {
	each(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		for name, want := range map[string]string{
			"":          "uid=0(root) gid=0(root) groups=0(root)",
			"app":       "uid=1000(app) gid=1000(app) groups=1000(app),2000(staff)",
			"1000":      "uid=1000(app) gid=1000(app) groups=1000(app),2000(staff)",
			"app:staff": "uid=1000(app) gid=2000(staff) groups=2000(staff)",
			"7:8":       "uid=7 gid=8 groups=8",
		} {
			meta := sh("id; stat -c '%u:%g %a' .")
			meta.User, meta.Cwd = name, "/made-for-"+strings.ReplaceAll(name, ":", "-")+"/deep"
			out, dir, _ := strings.Cut(l.must(t, root, meta), "\n")
			equal(t, "user "+name, out, want)
			uid, _, _ := strings.Cut(strings.TrimPrefix(out, "uid="), " ")
			uid, _, _ = strings.Cut(uid, "(")
			if !strings.HasPrefix(dir, uid+":") || !strings.HasSuffix(dir, " 755") {
				t.Errorf("working directory of %q belongs to %s", name, dir)
			}
		}
		nobody := sh("id")
		nobody.User = "nobody-like-this"
		if r := l.run(t.Context(), root, nobody); r.failed == nil || !strings.Contains(r.failed.Error(), "nobody-like-this") {
			t.Errorf("unknown user: %v", r.failed)
		}
	})
}

func TestStepMounts(t *testing.T) {
	each(t, executor.Config{}, func(t *testing.T, l *lab) {
		root, data := rootfs(t), t.TempDir()
		if err := os.MkdirAll(filepath.Join(data, "sub", "deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, data, "sub/deep/file", "content")
		old := time.Unix(1_000_000_000, 0)
		for _, d := range []string{"", "etc"} {
			if err := os.Chtimes(filepath.Join(root, d), old, old); err != nil {
				t.Fatal(err)
			}
		}
		out := l.must(t, root, sh("cat /in/deep/file; echo new > /out/written; touch /in/x; touch /twice/x"),
			bk.Mount{Src: source(data), Selector: "sub", Dest: "/in", Readonly: true},
			bk.Mount{Src: source(data), Dest: "/out"},
			bk.Mount{Src: source(data), Selector: "sub/deep/file", Dest: "/etc/one", Readonly: true},
			bk.Mount{Src: source(t.TempDir()), Dest: "/twice", Readonly: true},
			bk.Mount{Src: source(t.TempDir()), Dest: "/twice"})
		equal(t, "mounted file", out, "content")
		if b, err := os.ReadFile(filepath.Join(data, "written")); err != nil || string(b) != "new\n" {
			t.Errorf("written through the mount: %q, %v", b, err)
		}
		for _, stub := range []string{"in", "out", "twice", "etc/one", "etc/resolv.conf", "etc/hosts"} {
			if _, err := os.Lstat(filepath.Join(root, stub)); err == nil {
				t.Errorf("mount point /%s is left", stub)
			}
		}
		if l.peer {
			return // it restores the times of after, not of before
		}
		st, err := os.Stat(filepath.Join(root, "etc"))
		if err != nil || !st.ModTime().Equal(old) {
			t.Errorf("/etc is of %s, want %s (%v)", st.ModTime(), old, err)
		}
	})
}

func TestStepStdin(t *testing.T) {
	each(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		r, w := io.Pipe()
		started := make(chan struct{})
		go func() {
			<-started
			_, _ = io.WriteString(w, strings.Repeat("0123456789abcdef", 1<<16)) // 1 MiB
			w.Close()
		}()
		var out output
		_, err := l.Run(t.Context(), "", bk.Mount{Src: source(root)}, nil,
			bk.ProcessInfo{Meta: sh("wc -c"), Stdin: r, Stdout: &out}, started)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "bytes", strings.TrimSpace(out.String()), "1048576")
	})
}

func TestStepTerminal(t *testing.T) {
	each(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		meta := sh("trap 'echo got usr1' USR1; while [ \"$(stty size)\" != '40 120' ]; do sleep 0.05; done; " +
			"echo resized; while :; do sleep 0.05; done")
		meta.Tty, meta.ValidExitCodes = true, []int{137}
		resize, signals := make(chan bk.WinSize), make(chan syscall.Signal)
		started, ended := make(chan struct{}), make(chan error, 1)
		var out output
		go func() {
			_, err := l.Run(t.Context(), "", bk.Mount{Src: source(root)}, nil,
				bk.ProcessInfo{Meta: meta, Stdout: &out, Resize: resize, Signal: signals}, started)
			ended <- err
		}()
		<-started
		resize <- bk.WinSize{Rows: 40, Cols: 120}
		harness.Await(t, limit, "new size", func() bool { return strings.Contains(out.String(), "resized\r\n") })
		signals <- syscall.SIGUSR1
		harness.Await(t, limit, "signal", func() bool { return strings.Contains(out.String(), "got usr1\r\n") })
		signals <- syscall.SIGKILL
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Exec adds to a step what Run was asked for, in the same terms.
func TestExec(t *testing.T) {
	each(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		step := sh("while :; do sleep 0.1; done")
		step.Env = []string{"PATH=/bin", "OF=step"}
		b := l.start(t, root, step)
		for _, c := range []struct {
			meta  bk.Meta
			stdin string
			want  string
		}{
			{meta: bk.Meta{Args: []string{"/bin/sh", "-c", "echo $OF; pwd"}}, want: "step\n/\n"},
			{meta: bk.Meta{Args: []string{"/bin/sh", "-c", "echo $OF$MY; pwd"}, Env: []string{"PATH=/bin", "MY=own"}, Cwd: "/etc"}, want: "own\n/etc\n"},
			{meta: bk.Meta{Args: []string{"/bin/id"}, User: "app"}, want: "uid=1000(app) gid=1000(app) groups=1000(app),2000(staff)\n"},
			{meta: bk.Meta{Args: []string{"/bin/id"}, User: "5:6"}, want: "uid=5 gid=6 groups=6\n"},
			{meta: bk.Meta{Args: []string{"/bin/cat"}}, stdin: "through", want: "through"},
		} {
			r := l.exec(t.Context(), b.id, c.meta, c.stdin)
			if l.peer && c.meta.User != "" {
				continue // it leaves the user's own group out of the groups
			}
			if r.failed != nil || r.out != c.want {
				t.Errorf("exec %+v: %q, %v; stderr %q", c.meta, r.out, r.failed, r.err)
			}
		}
		r := l.exec(t.Context(), b.id, bk.Meta{Args: []string{"/bin/sh", "-c", "exit 9"}}, "")
		if exit, ok := errors.AsType[*gatewayapi.ExitError](r.failed); !ok || exit.ExitCode != 9 {
			t.Errorf("exit code 9 is %v", r.failed)
		}
		b.stop(errors.New("enough"))
		<-b.ended
		contains(t, "cancelled step", b.err.Error(), "exit code: 137")
		contains(t, "cause", b.err.Error(), "enough")
		if r := l.exec(t.Context(), b.id, bk.Meta{Args: []string{"/bin/true"}}, ""); r.failed == nil {
			t.Error("exec in a step that is gone succeeds")
		}
	})
}
