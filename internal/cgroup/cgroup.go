// Package cgroup looks at and acts on the cgroup of a running container:
// statistics, processes, out-of-memory kills, kill of everything. The OCI
// runtime makes and removes the cgroup.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
)

const hostRoot = "/sys/fs/cgroup"

// Paths name the cgroups of a process: for each v1 hierarchy ("memory",
// "cpu", …) its path, and under "" the path in the v2 hierarchy. It is kept on
// disk, because a process that has ended shows it no more.
type Paths map[string]string

// Of reads the cgroups of a process from /proc/PID/cgroup.
func Of(pid int) (Paths, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	p := Paths{}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, name := range strings.Split(parts[1], ",") {
			p[strings.TrimPrefix(name, "name=")] = parts[2]
		}
	}
	return p, nil
}

// Cgroup is the cgroup of one container. Its methods may be called at once
// from several goroutines; what is gone is errdefs.ErrNotFound.
type Cgroup struct {
	paths   Paths
	root    string // where the hierarchies are mounted
	unified bool   // root is a v2 hierarchy; otherwise the parent of those of v1
}

// Load makes a handle. own are the paths of the calling process: a container
// that shares them has no cgroup of its own, and gives NotFound.
func Load(paths, own Paths) (*Cgroup, error) {
	c := &Cgroup{paths: paths, root: hostRoot, unified: cgroups.Mode() == cgroups.Unified}
	key := c.key()
	path, ok := paths[key]
	if !ok || path == "/" || path == own[key] {
		return nil, fmt.Errorf("the container has no cgroup of its own: %w", errdefs.ErrNotFound)
	}
	if !filepath.IsLocal(strings.TrimPrefix(path, "/")) {
		return nil, fmt.Errorf("cgroup path %q leaves the hierarchy: %w", path, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// key is the hierarchy that lists the processes: every runtime joins it.
func (c *Cgroup) key() string {
	if c.unified {
		return ""
	}
	for _, name := range []string{"freezer", "pids", "memory", "devices", "systemd"} {
		if _, ok := c.paths[name]; ok {
			return name
		}
	}
	return ""
}

func (c *Cgroup) dir(hierarchy string) (string, bool) {
	path, ok := c.paths[hierarchy]
	if !ok {
		return "", false
	}
	if c.unified {
		return filepath.Join(c.root, path), true
	}
	return filepath.Join(c.root, hierarchy, path), true
}

// Stats returns io.containerd.cgroups.v1.Metrics or v2.Metrics.
func (c *Cgroup) Stats() (task.Any, error) {
	read := c.statsV1
	if c.unified {
		read = c.statsV2
	}
	metrics, err := read()
	if err != nil {
		return task.Any{}, notFound(err)
	}
	// What is gone shows as zeros.
	if dir, ok := c.dir(c.key()); ok {
		if _, err := os.Stat(dir); err != nil {
			return task.Any{}, notFound(err)
		}
	}
	a, err := typeurl.MarshalAny(metrics)
	if err != nil {
		return task.Any{}, fmt.Errorf("encode cgroup metrics: %w", err)
	}
	return task.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}, nil
}

func (c *Cgroup) statsV1() (any, error) {
	cg, err := cgroup1.Load(func(name cgroup1.Name) (string, error) {
		path, ok := c.paths[string(name)]
		if !ok {
			return "", cgroup1.ErrControllerNotActive
		}
		return path, nil
	})
	if err != nil {
		return nil, err
	}
	return cg.Stat(cgroup1.IgnoreNotExist)
}

func (c *Cgroup) statsV2() (any, error) {
	m, err := cgroup2.Load(c.paths[""], cgroup2.WithMountpoint(c.root))
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", c.paths[""], err)
	}
	return m.Stat()
}

func notFound(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return fmt.Errorf("cgroup does not exist: %w", errdefs.ErrNotFound)
	}
	return err
}

// Pids lists the processes of the cgroup and of those below it.
func (c *Cgroup) Pids() ([]int, error) {
	dir, ok := c.dir(c.key())
	if !ok {
		return nil, fmt.Errorf("cgroup does not exist: %w", errdefs.ErrNotFound)
	}
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			if path != dir && errors.Is(err, os.ErrNotExist) {
				return nil // removed while we walk
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		got, err := readPids(filepath.Join(path, "cgroup.procs"))
		pids = append(pids, got...)
		if path != dir && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, notFound(fmt.Errorf("processes of cgroup: %w", err))
	}
	return pids, nil
}

func readPids(file string) ([]int, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a threaded cgroup: its processes are listed above it
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range bytes.Fields(data) {
		if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// oomKills is the number of processes that the kernel has killed in this cgroup
// for memory. ok is false when the cgroup is gone. An old kernel gives 0.
func (c *Cgroup) oomKills() (kills uint64, ok bool) {
	file := "memory.events"
	hierarchy := ""
	if !c.unified {
		hierarchy, file = "memory", "memory.oom_control"
	}
	dir, ok := c.dir(hierarchy)
	if !ok {
		return 0, false
	}
	return counter(filepath.Join(dir, file), "oom_kill")
}

// counter is false when the file cannot be read, as in a cgroup that is being
// removed.
func counter(file, key string) (n uint64, ok bool) {
	f, err := os.Open(file)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), " ")
		if k == key {
			n, err = strconv.ParseUint(v, 10, 64)
			return n, err == nil
		}
	}
	return 0, s.Err() == nil
}

// killRounds bounds how often SIGKILL is sent to a cgroup whose processes keep
// forking and cannot be frozen.
const killRounds = 100

// Kill sends the signal to every process of the cgroup. SIGKILL under v2 is
// one write to cgroup.kill. Otherwise the cgroup is frozen, every process is
// signalled, and the cgroup thawed, so that nothing forks past the signal.
// Where it cannot be frozen, SIGKILL is sent until no new process is found.
func (c *Cgroup) Kill(sig unix.Signal) error {
	if c.unified && sig == unix.SIGKILL {
		dir, _ := c.dir("")
		err := write(filepath.Join(dir, "cgroup.kill"), "1")
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return notFound(err)
		}
		if _, serr := os.Stat(dir); serr != nil {
			return notFound(serr)
		}
		// Linux before 5.14.
	}
	frozen := c.Freeze() == nil
	signalled := map[int]bool{}
	err := c.signalNew(sig, signalled)
	// In any case: a freeze that did not settle may do so later.
	if terr := c.Thaw(); terr != nil && frozen {
		err = errors.Join(err, terr)
	}
	if frozen || sig != unix.SIGKILL {
		return err
	}
	for range killRounds {
		known := len(signalled)
		if serr := c.signalNew(sig, signalled); serr != nil && !errors.Is(serr, errdefs.ErrNotFound) {
			return errors.Join(err, serr)
		}
		if len(signalled) == known {
			return err
		}
	}
	return errors.Join(err, fmt.Errorf("the cgroup's processes fork faster than they can be killed: %w", errdefs.ErrUnavailable))
}

// Signal sends the signal to every process of the cgroup, which is frozen and
// stays so: they see it when they are thawed.
func (c *Cgroup) Signal(sig unix.Signal) error { return c.signalNew(sig, map[int]bool{}) }

// signalNew signals the processes that are not in done, and adds them to it.
func (c *Cgroup) signalNew(sig unix.Signal, done map[int]bool) error {
	pids, err := c.Pids()
	for _, pid := range pids {
		if done[pid] {
			continue
		}
		done[pid] = true
		if kerr := unix.Kill(pid, sig); kerr != nil && !errors.Is(kerr, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("signal process %d: %w", pid, kerr))
		}
	}
	return err
}

var errNotSettled = fmt.Errorf("the cgroup's freezer did not settle: %w", errdefs.ErrUnavailable)

// Freeze stops every process of the cgroup and waits until they are, under v1
// for at most some 50 ms, under v2 for a second.
func (c *Cgroup) Freeze() error {
	if c.unified {
		return c.setFrozen("1", 1)
	}
	for range 25 {
		err := c.setFreezer("FROZEN", time.Millisecond)
		if !errors.Is(err, errNotSettled) {
			return err
		}
		// A v1 freezer can stay FREEZING for good when a process forked at
		// the wrong moment; a thaw gets it out of that.
		if err := c.setFreezer("THAWED", time.Millisecond); err != nil {
			return err
		}
	}
	return errNotSettled
}

// Thaw lets them go on.
func (c *Cgroup) Thaw() error {
	if c.unified {
		return c.setFrozen("0", 0)
	}
	return c.setFreezer("THAWED", time.Second)
}

func (c *Cgroup) setFrozen(value string, want uint64) error {
	dir, _ := c.dir("")
	if err := write(filepath.Join(dir, "cgroup.freeze"), value); err != nil {
		return notFound(err)
	}
	return settle(time.Second, func() (bool, error) {
		got, _ := counter(filepath.Join(dir, "cgroup.events"), "frozen")
		// The kernel may say for ever that it is frozen when the last process ended
		// while it was thawed.
		populated, _ := counter(filepath.Join(dir, "cgroup.events"), "populated")
		return got == want || populated == 0, nil
	})
}

func (c *Cgroup) setFreezer(value string, limit time.Duration) error {
	dir, ok := c.dir("freezer")
	if !ok {
		return fmt.Errorf("no freezer cgroup: %w", errdefs.ErrNotFound)
	}
	file := filepath.Join(dir, "freezer.state")
	return settle(limit, func() (bool, error) {
		if err := write(file, value); err != nil {
			return false, notFound(err)
		}
		got, err := os.ReadFile(file)
		return strings.TrimSpace(string(got)) == value, notFound(err)
	})
}

// settle asks until the answer is yes.
func settle(limit time.Duration, done func() (bool, error)) error {
	for wait, end := 50*time.Microsecond, time.Now().Add(limit); ; wait *= 2 {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if time.Now().After(end) {
			return errNotSettled
		}
		time.Sleep(wait)
	}
}

// write does not create the file: in a cgroup file system that would give a
// misleading error.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
