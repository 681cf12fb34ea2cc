package cgroup

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"
)

const limit = 20 * time.Second

// group is a cgroup that a test has made, with processes of the test in it.
type group struct {
	*Cgroup
	path string // the same in every hierarchy
}

// kinds are the hierarchies that this machine has: its own, and on a hybrid one
// the v2 tree beside those of v1.
func kinds() map[string]Cgroup {
	if cgroups.Mode() == cgroups.Unified {
		return map[string]Cgroup{"v2": {root: hostRoot, unified: true}}
	}
	m := map[string]Cgroup{"v1": {root: hostRoot}}
	if _, err := os.Stat(filepath.Join(hostRoot, "unified", "cgroup.controllers")); err == nil {
		m["v2"] = Cgroup{root: filepath.Join(hostRoot, "unified"), unified: true}
	}
	return m
}

// each runs the test once for each kind, with a cgroup of its own.
func each(t *testing.T, test func(t *testing.T, g *group)) {
	t.Helper()
	for name, kind := range kinds() {
		t.Run(name, func(t *testing.T) { test(t, newGroup(t, kind)) })
	}
}

func newGroup(t *testing.T, kind Cgroup) *group {
	t.Helper()
	own, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	g := &group{Cgroup: &kind, path: fmt.Sprintf("/berth-test-%d-%d", os.Getpid(), time.Now().UnixNano())}
	g.paths = Paths{}
	for hierarchy := range own {
		if kind.unified == (hierarchy == "") {
			g.paths[hierarchy] = g.path
		}
	}
	t.Cleanup(func() { g.remove(t) })
	g.mkdir(t, "")
	return g
}

// dirs are the group's directories, one in each hierarchy.
func (g *group) dirs() []string {
	var dirs []string
	for hierarchy := range g.paths {
		dir, _ := g.dir(hierarchy)
		dirs = append(dirs, dir)
	}
	return dirs
}

func (g *group) mkdir(t *testing.T, sub string) {
	t.Helper()
	for _, dir := range g.dirs() {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		// A v1 cpuset takes no process before it has these.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(dir, sub, "..", file)); err == nil && !g.unified {
				if err := write(filepath.Join(dir, sub, file), string(value)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// remove ends what is in the group and takes it away. What is gone is fine.
func (g *group) remove(t *testing.T) {
	t.Helper()
	for _, dir := range g.dirs() {
		for _, d := range []string{filepath.Join(dir, "sub"), dir} {
			await(t, "the end of "+d, func() bool {
				pids, _ := readPids(filepath.Join(d, "cgroup.procs"))
				for _, pid := range pids {
					unix.Kill(pid, unix.SIGKILL)
				}
				err := os.Remove(d)
				return err == nil || os.IsNotExist(err)
			})
		}
	}
}

// run starts a command in the group, or in the one below it named sub. Its
// standard input ends with the test. It is in the group before it runs.
func (g *group) run(t *testing.T, sub string, out io.Writer, args ...string) (*exec.Cmd, io.Writer) {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read go && exec "$@"`, "sh"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, t.Output()
	// Children that outlive the command hold its output; nobody waits for them.
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill() // has ended already where the test has waited
		cmd.Wait()
	})
	for _, dir := range g.dirs() {
		if err := write(filepath.Join(dir, sub, "cgroup.procs"), strconv.Itoa(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	return cmd, stdin
}

// waitSignal waits for the end of the command and tells the signal that ended it.
func waitSignal(t *testing.T, cmd *exec.Cmd) unix.Signal {
	t.Helper()
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("process %d goes on", cmd.Process.Pid)
	}
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return 0
	}
	return ws.Signal()
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}
