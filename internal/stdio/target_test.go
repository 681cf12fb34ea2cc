package stdio

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

func TestBadDestinations(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	fifo := mkfifo(t)
	invalid, notFound := errdefs.ErrInvalidArgument, errdefs.ErrNotFound
	for value, want := range map[string]error{
		"binary://host/logger":             invalid,
		"binary-v2://":                     invalid,
		"binary:///logger?a=%00":           invalid,
		"pipe://x":                         invalid,
		"://":                              invalid,
		"file://host/log":                  invalid,
		"file:///log?x=y":                  invalid,
		"fifo://":                          invalid,
		"relative/path":                    invalid,
		"/nul\x00byte":                     invalid,
		"file:///%zz":                      invalid,
		"/" + strings.Repeat("x", 5000):    invalid,
		dir:                                invalid,
		socket:                             invalid,
		"/dev/zero":                        invalid,
		"fifo://" + file:                   invalid,
		"json-file://x":                    invalid,
		"json-file://" + file + "?size=1":  invalid,
		"json-file://" + fifo:              invalid,
		"json-file://" + dir:               invalid,
		"file://" + fifo:                   invalid,
		"file://" + file + "/below":        invalid,
		loop:                               invalid,
		filepath.Join(dir, "missing"):      notFound,
		"fifo://" + dir + "/missing":       notFound,
		dangling:                           notFound,
		"file://" + dangling:               notFound,
		"/" + strings.Repeat("x", 300):     invalid,
		"file:///proc/nothing/can/be/here": nil,
	} {
		t.Run(strings.ReplaceAll(value, "/", "|"), func(t *testing.T) {
			checkLeaks(t)
			k := newTestKeeper(t)
			for _, stdio := range []task.Stdio{
				{Stdin: fifo, Stdout: fifo, Stderr: value},
				{Stdin: fifo, Stdout: value},
				{Stdin: fifo, Stdout: value, Terminal: true},
			} {
				s, err := Open(testContext(t), Config{Stdio: stdio, Keeper: k})
				if err == nil {
					closeNow(s)
					t.Fatalf("%+v was accepted", stdio)
				}
				if want != nil && !errors.Is(err, want) {
					t.Fatalf("%v, want %v", err, want)
				}
			}
		})
	}
}

func TestSymlinkedDirectoryIsFollowed(t *testing.T) {
	checkLeaks(t)
	path := mkfifo(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		t.Fatal(err)
	}
	got := collect(t, path)
	s := open(t, fifoConfig(filepath.Join(link, "fifo")))
	c := start(t, s)
	write(t, c.out, []byte("x"))
	c.exit()
	wantBytes(t, "stdout", got(), []byte("x"))
}

func TestNewLogFileHasItsMode(t *testing.T) {
	checkLeaks(t)
	old := unix.Umask(0)
	t.Cleanup(func() { unix.Umask(old) })
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := open(t, fifoConfig("file://"+dir+"/log"))
	mustClose(t, s)
	for path, want := range map[string]os.FileMode{dir: 0o755, dir + "/log": 0o644} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, st.Mode().Perm(), want)
		}
	}
}
