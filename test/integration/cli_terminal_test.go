package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// keepPID is a shell's command: the program that follows, with its pid in a file.
const keepPID = `sh -c 'echo $$ >"$0"; exec "$@"' `

// awaitPID reads the file that keepPID writes.
func awaitPID(t *testing.T, name string) (pid int) {
	t.Helper()
	harness.Await(t, 30*time.Second, "a pid in "+name, func() bool {
		text, _ := os.ReadFile(name)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return pid > 0 && strings.HasSuffix(string(text), "\n")
	})
	return pid
}

// TestTerminalModes compares the modes of the user's terminal before and after
// a command that had it in raw mode, however that ended.
func TestTerminalModes(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	back := d.ID("back")
	d.MustBerth(t, "run", "-d", "--name", back, harness.Image, "sleep", "1000")
	loop := func(signal string, code int) string {
		return fmt.Sprintf("%s sh -c 'trap \"exit %d\" %s; echo rea$((1))dy; while :; do sleep 0.05; done'", harness.Image, code, signal)
	}
	run := "run --rm -it --name " + d.ID("fore") + " "
	for name, test := range map[string]struct {
		args   string
		show   string         // what the terminal shows when the test acts
		signal syscall.Signal // to berth
		keys   string
		code   int
	}{
		"exit":           {args: run + harness.Image + " sh -c 'exit 3'", code: 3},
		"no program":     {args: run + harness.Image + " /no/such/program", code: 127},
		"no image":       {args: run + "--pull never berth.test/none true", code: 125},
		"TERM":           {args: run + loop("TERM", 5), show: "rea1dy", signal: syscall.SIGTERM, code: 5},
		"HUP":            {args: run + loop("HUP", 6), show: "rea1dy", signal: syscall.SIGHUP, code: 6},
		"ctrl-C":         {args: run + loop("INT", 7), show: "rea1dy", keys: "\x03", code: 7},
		"detach":         {args: run + loop("INT", 8), show: "rea1dy", keys: "\x10\x11"},
		"exec":           {args: "exec -it " + back + " sh -c 'exit 9'", code: 9},
		"exec of none":   {args: "exec -it " + back + " /no/such/program", code: 127},
		"exec, detached": {args: "exec -it " + back + " sh -c 'echo rea$((1))dy; exec sleep 1000'", show: "rea1dy", keys: "\x10\x11"},
		"password":       {args: "pull --user me localhost:1/none", show: "Password for me", keys: "\x03", code: 130},
		"question":       {args: "system prune", show: "[y/N]", keys: "\x03", code: 130},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := func(name string) string { return filepath.Join(dir, name) }
			term := d.SpawnTerminal(t, 80, 24, "/bin/sh", "-c", fmt.Sprintf(`trap : INT; stty -g >%s; %s %s %s %s; code=$?; stty -g >%s; exit $code`,
				file("before"), keepPID, file("pid"), d.Programs.Berth, test.args, file("after")))
			if test.show != "" {
				term.AwaitOutput(t, test.show)
			}
			if test.signal != 0 {
				if err := syscall.Kill(awaitPID(t, file("pid")), test.signal); err != nil {
					t.Fatal(err)
				}
			}
			term.Type(t, test.keys)
			if code := term.Wait(t); code != test.code {
				t.Errorf("exit code %d, want %d\n%q", code, test.code, term.Output())
			}
			before, err := os.ReadFile(file("before"))
			if err != nil {
				t.Fatal(err)
			}
			if after, err := os.ReadFile(file("after")); err != nil || string(after) != string(before) {
				t.Errorf("the modes were %q and are %q, %v", before, after, err)
			}
			if name == "detach" {
				d.MustBerth(t, "rm", "-f", d.ID("fore"))
			}
		})
	}
	d.MustBerth(t, "rm", "-f", back)
}

// TestTerminalFirstSize has the size before the process looks for it.
func TestTerminalFirstSize(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("back")
	d.MustBerth(t, "run", "-d", "--name", id, harness.Image, "sleep", "1000")
	for name, args := range map[string][]string{
		"run": {"run", "--rm", "-t", harness.Image, "stty", "size"}, "exec": {"exec", "-it", id, "stty", "size"},
	} {
		term := d.SpawnTerminal(t, 91, 33, append([]string{d.Programs.Berth}, args...)...)
		if code := term.Wait(t); code != 0 {
			t.Errorf("%s: exit code %d", name, code)
		}
		term.AwaitOutput(t, "33 91")
	}
	// A terminal that cannot move its cursor gets plain text.
	term := d.SpawnTerminal(t, 80, 24, "env", "TERM=dumb", "NO_COLOR=1", d.Programs.Berth, "stats")
	if code := term.Wait(t); code != 0 {
		t.Errorf("stats: exit code %d", code)
	}
	term.AwaitOutput(t, id)
	if strings.Contains(term.Output(), "\x1b") {
		t.Errorf("a dumb terminal gets %q", term.Output())
	}
	d.MustBerth(t, "rm", "-f", id)
}

// shell starts a shell with job control on a terminal.
func shell(t *testing.T, d *harness.Daemon) *harness.Terminal {
	t.Helper()
	sh := d.SpawnTerminal(t, 80, 24, "env", "HISTFILE=", "bash", "--norc", "--noprofile", "-i")
	sh.AwaitReply(t, "echo rea$((1))dy", "rea1dy")
	return sh
}

// TestTerminalJobs puts a command into the background and back.
func TestTerminalJobs(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id, sh := d.ID("job"), shell(t, d)
	// Ctrl-Z stops the command, not the container; it goes on with fg.
	sh.Type(t, d.Programs.Berth+" run --rm --name "+id+" "+harness.Image+
		` sh -c 'trap "exit 4" INT; echo u$((1))p; until [ -e /go ]; do sleep 0.05; done; echo we$((1))nt; while :; do sleep 0.05; done'`+"\n")
	sh.AwaitOutput(t, "u1p")
	sh.Type(t, "\x1a")
	sh.AwaitOutput(t, "Stopped")
	if got := d.TaskStatus(t, id); got != "RUNNING" {
		t.Errorf("the container of a stopped command is %s", got)
	}
	d.MustBerth(t, "exec", id, "touch", "/go")
	// In the background it shows what the container wrote.
	sh.Type(t, "bg\n")
	sh.AwaitOutput(t, "we1nt")
	sh.Type(t, "fg\n")
	// The shell shows the command, which it did for the line, the stop and bg,
	// and gives it the terminal: Ctrl-C before that is the shell's own.
	harness.Await(t, 30*time.Second, "fg", func() bool { return strings.Count(sh.Output(), "run --rm --name "+id) >= 4 })
	ended := harness.Poll(30*time.Second, func() bool {
		sh.Type(t, "\x03")
		return d.Berth(t, "inspect", id).Code != 0
	})
	if !ended {
		t.Errorf("Ctrl-C does not end it: %q", sh.Output())
	}
}

// TestTerminalRawJobs stops a command that has the terminal in raw mode, where
// the keys are the container's: another program does it.
func TestTerminalRawJobs(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir, sh := t.TempDir(), shell(t, d)
	pid, before, after := filepath.Join(dir, "pid"), filepath.Join(dir, "before"), filepath.Join(dir, "after")
	sh.AwaitReply(t, "stty -g >"+before+"; echo be$((1))fore", "be1fore")
	sh.Type(t, keepPID+pid+" "+d.Programs.Berth+" run --rm -it "+harness.Image+" sh\n")
	sh.AwaitReply(t, "IN=in$((1))side; echo $IN", "in1side")
	if err := syscall.Kill(awaitPID(t, pid), syscall.SIGTSTP); err != nil {
		t.Fatal(err)
	}
	sh.AwaitOutput(t, "Stopped")
	sh.AwaitReply(t, "stty -g >"+after+"; echo af$((1))ter", "af1ter")
	was, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(after); err != nil || string(is) != string(was) {
		t.Errorf("the shell has the terminal with %q, before with %q, %v", is, was, err)
	}
	sh.Resize(t, 66, 44)
	sh.Type(t, "fg\n")
	sh.AwaitReply(t, "echo $(stty size) $IN", "44 66 in1side")
	sh.Type(t, "exit 5\n")
	sh.AwaitReply(t, "echo end$?", "end5")
}

// TestStandardInput runs with all that a shell gives a command as its streams.
func TestStandardInput(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	file, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	write(t, file, "from a file\n")
	write(t, out, "was\n")
	berth := d.Programs.Berth + " run --rm "
	for name, test := range map[string]struct {
		script, stdout, stderr string
		fails                  bool
	}{
		"pipe":          {script: "printf piped | " + berth + "-i " + harness.Image + " cat", stdout: "piped"},
		"file":          {script: berth + "-i " + harness.Image + " cat <" + file, stdout: "from a file\n"},
		"null":          {script: berth + "-i " + harness.Image + " sh -c 'cat; echo end' </dev/null", stdout: "end\n"},
		"closed":        {script: berth + "-i " + harness.Image + " sh -c 'cat; echo end' <&-", stdout: "end\n"},
		"closed, no -i": {script: berth + harness.Image + " sh -c 'cat; echo end' <&-", stdout: "end\n"},
		"closed output": {script: berth + harness.Image + " sh -c 'echo lost; echo seen >&2' >&-", stderr: "seen\n"},
		"closed errors": {script: berth + harness.Image + " sh -c 'echo seen; echo lost >&2' 2>&-", stdout: "seen\n"},
		"to a file":     {script: berth + harness.Image + " echo more >>" + out + "; cat " + out, stdout: "was\nmore\n"},
		// Their first process has no handler for TERM: it is not waited for.
		"head":       {script: berth + harness.Image + " yes | head -n 1", stdout: "y\n"},
		"head, both": {script: berth + harness.Image + " sh -c 'yes; yes >&2' 2>&1 | head -n 1", stdout: "y\n"},
		"full":       {script: berth + harness.Image + " yes >/dev/full", stderr: "no space left", fails: true},
		"no output":  {script: d.Programs.Berth + " images | true"},
	} {
		t.Run(name, func(t *testing.T) {
			r := d.Exec(t, "", "/bin/sh", "-c", test.script)
			ok := r.Stderr == test.stderr
			if test.fails {
				ok = strings.Count(r.Stderr, "\n") == 1 && strings.Contains(r.Stderr, test.stderr)
			}
			if !ok || r.Stdout != test.stdout || (r.Code != 0) != test.fails {
				t.Errorf("%s\nwant stdout %q, stderr %q", r, test.stdout, test.stderr)
			}
		})
	}
	if out := d.MustBerth(t, "ps", "-aq"); out != "" {
		t.Errorf("containers are left: %q", out)
	}
}

// TestForwardedSignals sends a command in the foreground every signal that it
// can catch.
func TestForwardedSignals(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	p := d.Spawn(t, d.Programs.Berth, "run", "--rm", harness.Image, "sh", "-c",
		`for s in $(seq 64); do trap "echo got $s." $s; done 2>/dev/null; echo ready; while [ ! -e /go ]; do sleep 0.05; done`)
	p.AwaitOutput(t, "ready")
	kept := map[int]bool{9: true, 19: true, 17: true, 18: true, 20: true, 21: true, 22: true, 23: true, 13: true, 27: true, 28: true, 32: true, 33: true, 34: true}
	var sent []int
	for s := 1; s <= 64; s++ {
		if !kept[s] {
			p.Signal(t, syscall.Signal(s))
			sent = append(sent, s)
		}
	}
	missing := func() (list []int) {
		for _, s := range sent {
			if !strings.Contains(p.Stdout(), fmt.Sprintf("got %d.", s)) {
				list = append(list, s)
			}
		}
		return list
	}
	if !harness.Poll(time.Minute, func() bool { return len(missing()) == 0 }) {
		t.Errorf("not forwarded: %v\n%s%s", missing(), p.Stdout(), p.Stderr())
	}
	id := strings.TrimSpace(d.MustBerth(t, "ps", "-q"))
	d.MustBerth(t, "exec", id, "touch", "/go")
	if r := p.Wait(t); r.Code != 0 || r.Stderr != "" {
		t.Error(r)
	}
}

// TestClientKilled kills clients in the foreground: the container goes on, can
// be attached to, and nothing of the client stays.
func TestClientKilled(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	start := func(name string, args ...string) {
		t.Helper()
		pid := filepath.Join(dir, name)
		p := d.Spawn(t, append([]string{"sh", "-c", `echo $$ >"$0"; exec "$@"`, pid, d.Programs.Berth}, args...)...)
		p.AwaitOutput(t, "up\n")
		n := awaitPID(t, pid)
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		harness.Await(t, 30*time.Second, "the client's end", func() bool { return harness.Ended(n) })
	}
	id := d.ID("run")
	start("run", "run", "--rm", "--name", id, harness.Image, "sh", "-c", "echo up; until [ -e /go ]; do echo tick; sleep 0.05; done; echo went on; exit 42")
	if got := d.TaskStatus(t, id); got != "RUNNING" {
		t.Errorf("the container is %s", got)
	}
	start("exec", "exec", "--exec-id", d.ID("exec"), id, "sh", "-c", "echo up; exec sleep 1000")
	p := d.Spawn(t, d.Programs.Berth, "attach", id)
	p.AwaitOutput(t, "tick")
	d.MustBerth(t, "exec", id, "touch", "/go")
	if r := p.Wait(t); r.Code != 42 || !strings.HasSuffix(r.Stdout, "tick\nwent on\n") {
		t.Error(r)
	}
	if out := d.MustBerth(t, "ps", "-aq"); out != "" {
		t.Errorf("--rm leaves %q", out)
	}
	// The FIFOs of the exec, which nobody deleted: later commands find them when
	// they are old, twice.
	left := func() []string {
		found, _ := filepath.Glob("/run/berth/fifo/*/*" + d.Namespace + "-*")
		return found
	}
	for range 2 {
		for _, fifo := range left() {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Dir(fifo), old, old); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		d.MustBerth(t, "run", "--rm", harness.Image, "true")
	}
	if names := left(); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}
