package cgroup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func TestOf(t *testing.T) {
	own, err := Of(os.Getpid())
	if err != nil || len(own) == 0 {
		t.Fatalf("%v, %v", own, err)
	}
	for hierarchy, path := range own {
		if !strings.HasPrefix(path, "/") || strings.HasPrefix(hierarchy, "name=") {
			t.Errorf("%q: %q", hierarchy, path)
		}
	}
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if paths, err := Of(cmd.Process.Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an ended process has %v, %v", paths, err)
	}
	each(t, func(t *testing.T, g *group) {
		cmd, _ := g.run(t, "", nil, "/bin/cat")
		paths, err := Of(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		for hierarchy := range g.paths {
			if paths[hierarchy] != g.path {
				t.Errorf("%q: %q, want %q", hierarchy, paths[hierarchy], g.path)
			}
		}
	})
}

func TestLoad(t *testing.T) {
	own, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	all := func(path string) Paths {
		p := Paths{}
		for hierarchy := range own {
			p[hierarchy] = path
		}
		return p
	}
	for name, c := range map[string]struct {
		paths, own Paths
		class      error
	}{
		"own":        {own, own, errdefs.ErrNotFound},
		"shared":     {all("/x"), all("/x"), errdefs.ErrNotFound},
		"root":       {all("/"), all("/x"), errdefs.ErrNotFound},
		"none":       {Paths{}, own, errdefs.ErrNotFound},
		"outside":    {all("/../../etc"), own, errdefs.ErrInvalidArgument},
		"namespace":  {all("/../x"), own, errdefs.ErrInvalidArgument},
		"of its own": {all("/x"), own, nil},
	} {
		got, err := Load(c.paths, c.own)
		if !errors.Is(err, c.class) || (err == nil) != (got != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestPids(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		if pids, err := g.Pids(); err != nil || len(pids) > 0 {
			t.Errorf("empty: %v, %v", pids, err)
		}
		g.mkdir(t, "sub")
		a, _ := g.run(t, "", nil, "/bin/cat")
		b, _ := g.run(t, "sub", nil, "/bin/cat")
		pids, err := g.Pids()
		slices.Sort(pids)
		want := []int{a.Process.Pid, b.Process.Pid}
		slices.Sort(want)
		if err != nil || !slices.Equal(pids, want) {
			t.Errorf("%v, %v, want %v", pids, err, want)
		}
	})
}

func TestStats(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		g.run(t, "", nil, "/bin/sh", "-c", "while :; do :; done")
		await(t, "processor time in the metrics", func() bool {
			got, err := g.Stats()
			if err != nil {
				t.Fatal(err)
			}
			url, metrics := "io.containerd.cgroups.v1.Metrics", proto.Message(&v1.Metrics{})
			if g.unified {
				url, metrics = "io.containerd.cgroups.v2.Metrics", &v2.Metrics{}
			}
			if got.TypeURL != url {
				t.Fatalf("type %q, want %q", got.TypeURL, url)
			}
			if err := proto.Unmarshal(got.Value, metrics); err != nil {
				t.Fatal(err)
			}
			if m, ok := metrics.(*v1.Metrics); ok {
				return m.GetPids().GetCurrent() == 1 && m.GetCPU().GetUsage().GetTotal() > 0
			}
			return metrics.(*v2.Metrics).GetCPU().GetUsageUsec() > 0
		})
	})
}

// A frozen process does not answer; a thawed one does.
func TestFreeze(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		out, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		defer w.Close()
		_, stdin := g.run(t, "", w, "/bin/cat")
		lines := bufio.NewReader(out)
		echo := func(line string, limit time.Duration) error {
			if line != "" {
				if _, err := stdin.Write([]byte(line + "\n")); err != nil {
					t.Fatal(err)
				}
			}
			if err := out.SetReadDeadline(time.Now().Add(limit)); err != nil {
				t.Fatal(err)
			}
			_, err := lines.ReadString('\n')
			return err
		}
		if err := echo("before", limit); err != nil {
			t.Fatal(err)
		}
		if err := g.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := echo("frozen", 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a frozen process answers: %v", err)
		}
		if err := g.Thaw(); err != nil {
			t.Fatal(err)
		}
		if err := echo("", limit); err != nil {
			t.Errorf("a thawed process: %v", err)
		}
	})
}

// forks is a script whose processes end and are forked all the time.
const forks = `for i in 1 2 3 4; do while :; do (:); done & done; echo; wait`

func TestKillEndsAForkingTree(t *testing.T) {
	test := func(t *testing.T, g *group) {
		out, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd, _ := g.run(t, "", w, "/bin/sh", "-c", forks)
		w.Close()
		if _, err := out.Read(make([]byte, 1)); err != nil { // they fork
			t.Fatal(err)
		}
		if err := g.Kill(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		if sig := waitSignal(t, cmd); sig != unix.SIGKILL {
			t.Errorf("ended by %v", sig)
		}
		await(t, "the end of all", func() bool {
			pids, err := g.Pids()
			return err == nil && len(pids) == 0
		})
	}
	each(t, test)
	kind, ok := kinds()["v1"]
	if !ok {
		return // v2 can always be frozen
	}
	t.Run("no freezer", func(t *testing.T) {
		g := newGroup(t, kind)
		g.remove(t)
		delete(g.paths, "freezer")
		g.mkdir(t, "")
		if g.Freeze() == nil {
			t.Fatal("frozen without a freezer")
		}
		test(t, g)
	})
}

// A signal reaches every process, those of cgroups below too, and no other.
func TestKillSignalsAll(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		g.mkdir(t, "sub")
		a, _ := g.run(t, "", nil, "/bin/cat")
		b, _ := g.run(t, "sub", nil, "/bin/cat")
		if err := g.Kill(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		for _, cmd := range []*exec.Cmd{a, b} {
			if sig := waitSignal(t, cmd); sig != unix.SIGUSR1 {
				t.Errorf("ended by %v", sig)
			}
		}
	})
}

func TestKillEndsTheFrozen(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		cmd, _ := g.run(t, "", nil, "/bin/cat")
		if err := g.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := g.Kill(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if sig := waitSignal(t, cmd); sig != unix.SIGKILL {
			t.Errorf("ended by %v", sig)
		}
	})
}

func TestOOMKills(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		if n, _ := g.oomKills(); n != 0 {
			t.Errorf("%d kills in a new cgroup", n)
		}
		hierarchy, files := "memory", []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
		value := "16M"
		if g.unified {
			hierarchy, files = "", []string{"memory.max", "memory.swap.max"}
		}
		dir, _ := g.dir(hierarchy)
		if err := write(filepath.Join(dir, files[0]), value); err != nil {
			t.Logf("no limit can be set here: %v", err)
			return
		}
		if g.unified {
			value = "0"
		}
		// Absent where the machine has no swap.
		if err := write(filepath.Join(dir, files[1]), value); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		told := watchKills(t, g)
		cmd, _ := g.run(t, "", nil, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
		if sig := waitSignal(t, cmd); sig != unix.SIGKILL {
			t.Errorf("ended by %v", sig)
		}
		if n, _ := g.oomKills(); n != 1 {
			t.Errorf("%d kills", n)
		}
		select {
		case <-told:
		case <-time.After(time.Minute):
			t.Error("nobody was told of the kill")
		}
	})
}

// watchKills returns what is closed when a watcher tells of a kill. One of the
// machine's own mode is not for cgroups of the other.
func watchKills(t *testing.T, g *group) <-chan struct{} {
	t.Helper()
	told := make(chan struct{})
	w, err := NewOOMWatcher()
	if err != nil {
		t.Fatal(err)
	}
	if w.unified != g.unified {
		close(told)
	} else {
		once := sync.OnceFunc(func() { close(told) })
		err = w.Add(g.Cgroup, func() {
			if w.Kills(g.Cgroup) > 0 {
				once()
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(w.Run)
	t.Cleanup(func() {
		w.Remove(g.Cgroup)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		running.Wait()
	})
	return told
}

// What is gone is NotFound, whatever is asked of it.
func TestRemoved(t *testing.T) {
	each(t, func(t *testing.T, g *group) {
		g.remove(t)
		_, perr := g.Pids()
		_, serr := g.Stats()
		for name, err := range map[string]error{
			"pids": perr, "stats": serr, "freeze": g.Freeze(), "thaw": g.Thaw(),
			"kill": g.Kill(unix.SIGKILL), "term": g.Kill(unix.SIGTERM),
		} {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n, _ := g.oomKills(); n != 0 {
			t.Errorf("%d kills", n)
		}
	})
}

// The end of a watch is no change of its cgroup: one that ends so has not been at
// its limit just before.
func TestOOMWatchEnds(t *testing.T) {
	watch := &oomWatch{wd: 7}
	w := &OOMWatcher{watches: map[*Cgroup]*oomWatch{{}: watch}, pending: map[int32]bool{}}
	event := func(wd int32, mask uint32) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(wd))
		b = binary.NativeEndian.AppendUint32(b, mask)
		return append(b, make([]byte, 8)...) // no cookie, no name
	}
	w.noteLocked(append(event(7, unix.IN_DELETE_SELF), event(7, unix.IN_IGNORED)...))
	if len(w.pending) != 0 || !watch.changed.IsZero() {
		t.Errorf("pending %v, changed %v", w.pending, watch.changed)
	}
	w.noteLocked(event(7, unix.IN_MODIFY))
	if !w.pending[7] || watch.changed.IsZero() {
		t.Error("a change is not seen")
	}
}
