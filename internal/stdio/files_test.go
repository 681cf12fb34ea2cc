package stdio

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/berthd/berth/task"
)

// wantNoFiles fails the test when streams that are closed have a file in use.
func wantNoFiles(t *testing.T, files *Files) {
	t.Helper()
	files.mu.Lock()
	defer files.mu.Unlock()
	if len(files.ends) > 0 {
		t.Fatalf("%d files are still in use", len(files.ends))
	}
}

// TestOneDestinationKeepsTheOrder has a process write to its stdout and stderr
// by turns, while the process that moves the lines is replaced.
func TestOneDestinationKeepsTheOrder(t *testing.T) {
	const lines = 10000
	const script = `i=0; while [ $i -lt 10000 ]; do echo $i; echo $((i+1)) >&2; i=$((i+2)); done`
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&want, i)
	}
	for _, to := range []string{"fifo", "path", "uri", "link"} {
		t.Run(to, func(t *testing.T) {
			checkLeaks(t)
			path := filepath.Join(t.TempDir(), "log")
			stdout, stderr := path, path
			got := func() []byte { b, _ := os.ReadFile(path); return b }
			switch to {
			case "fifo":
				stdout = mkfifo(t)
				stderr, got = "fifo://"+stdout, collect(t, stdout)
			case "uri":
				stdout, stderr = "file://"+path, "file://"+path
			case "link": // the file counts, not the path
				stderr = path + ".link"
				if err := os.Symlink(path, stderr); err != nil {
					t.Fatal(err)
				}
				fallthrough
			case "path":
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := born(t, Config{Stdio: task.Stdio{Stdout: stdout, Stderr: stderr}})
			l.wantKept("stdout.r", "stdout.w")
			cmd := exec.Command("/bin/busybox", "sh", "-c", script)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = l.now.RuntimeFiles()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := l.now.Started(testContext(t)); err != nil {
				t.Fatal(err)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			for running := true; running; {
				l.kill()
				select {
				case err := <-exited:
					if err != nil {
						t.Fatal(err)
					}
					running = false
				default:
				}
			}
			waitDrained(t, l.now)
			wantBytes(t, "lines", got(), want.Bytes())
			mustClose(t, l.now)
			l.wantKept()
		})
	}
}

func TestOneDestinationHasOnePipe(t *testing.T) {
	checkLeaks(t)
	fifo, file := mkfifo(t), filepath.Join(t.TempDir(), "log")
	for _, to := range []struct {
		stdout, stderr string
		same           bool
	}{
		{fifo, fifo, true},
		{"file://" + file, file, true},
		{fifo, file, false},
		{fifo, "", false},
		{"", file, false},
		{"/dev/null", "/dev/null", false},
	} {
		s := open(t, Config{Stdio: task.Stdio{Stdout: to.stdout, Stderr: to.stderr}})
		if _, stdout, stderr := s.RuntimeFiles(); stdout == nil || stderr == nil || (stdout == stderr) != to.same {
			t.Errorf("stdout %q and stderr %q: %v, %v", to.stdout, to.stderr, stdout, stderr)
		}
		closeNow(s)
	}
}

// TestStreamsShareAFile has four processes, one of whose movers is replaced
// again and again, print into one file.
func TestStreamsShareAFile(t *testing.T) {
	checkLeaks(t)
	const lines = 4000
	files := &Files{}
	path := filepath.Join(t.TempDir(), "log")
	configs := []task.Stdio{
		{Stdout: "file://" + path, Stderr: "file://" + path},
		{Stderr: "file://" + path},
		{Stdout: "file://" + path},
	}
	var printing sync.WaitGroup
	say := func(who string, to *os.File) {
		printing.Go(func() {
			for i := range lines {
				// Of every length, so that lines end anywhere in a page.
				if _, err := fmt.Fprintf(to, "%s %d %s\n", who, i, strings.Repeat(who, i%300)); err != nil {
					t.Error(err)
				}
			}
			to.Close()
		})
	}
	var all []*Streams
	for i, c := range configs {
		s := open(t, Config{Stdio: c, Files: files})
		all = append(all, s)
		ends := start(t, s)
		if c.Stdout != "" {
			say(fmt.Sprintf("o%d", i), ends.out)
		}
		if c.Stderr != "" {
			say(fmt.Sprintf("e%d", i), ends.err)
		}
	}
	l := born(t, Config{Stdio: configs[2], Files: files})
	say("adopted", start(t, l.now).out)
	for range 20 {
		l.kill()
	}
	printing.Wait()
	for _, s := range append(all, l.now) {
		waitDrained(t, s)
		mustClose(t, s)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for line := range strings.Lines(string(b)) {
		who, _, _ := strings.Cut(line, " ")
		i := next[who]
		if want := fmt.Sprintf("%s %d %s\n", who, i, strings.Repeat(who, i%300)); line != want {
			t.Fatalf("line %d of %q is %.80q, want %.80q", i, who, line, want)
		}
		next[who]++
	}
	for _, who := range []string{"o0", "e0", "e1", "o2", "adopted"} {
		if next[who] != lines {
			t.Errorf("%d lines of %s, want %d", next[who], who, lines)
		}
	}
	wantNoFiles(t, files)
}

// TestEveryKindOfMoverSharesAFile mixes movers that splice with one that cannot
// and with a terminal: no byte is overwritten.
func TestEveryKindOfMoverSharesAFile(t *testing.T) {
	checkLeaks(t)
	const n = 1 << 20
	files := &Files{}
	path := filepath.Join(t.TempDir(), "log")
	cfg := fifoConfig("file://" + path)
	cfg.Files = files
	spliced, copied := open(t, cfg), open(t, cfg)
	refuseSplice(t, copied)
	terminalCfg := terminalConfig(t, "", "file://"+path)
	terminalCfg.Files = files
	terminal := open(t, terminalCfg)
	writers := []*os.File{start(t, spliced).out, start(t, copied).out, startTerminal(t, terminal, true)}
	var printing sync.WaitGroup
	for i, w := range writers {
		printing.Go(func() {
			for range n / 1024 {
				if _, err := w.Write(bytes.Repeat([]byte{byte('a' + i)}, 1024)); err != nil {
					t.Error(err)
				}
			}
			w.Close()
		})
	}
	printing.Wait()
	for _, s := range []*Streams{spliced, copied, terminal} {
		mustClose(t, s)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range writers {
		if got := bytes.Count(b, []byte{byte('a' + i)}); got != n {
			t.Errorf("%d bytes of writer %c, want %d", got, 'a'+i, n)
		}
	}
	if len(b) != len(writers)*n {
		t.Errorf("the file has %d bytes, want %d", len(b), len(writers)*n)
	}
	wantNoFiles(t, files)
}
