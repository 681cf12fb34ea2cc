package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
)

// processes lists what runs on behalf of the daemon, the daemon itself left
// out: shims, guards, runtimes and containers. A process is known by the mark
// in its environment, or by the namespace in its arguments or its cgroup.
func (d *Daemon) processes() []proc {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []proc
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || (d.running() && pid == d.PID()) {
			continue
		}
		if d.marked(pid) {
			found = append(found, readProc(pid))
		}
	}
	return found
}

func (d *Daemon) marked(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	for file, mark := range map[string]string{
		"environ": markVar + "=" + d.Namespace,
		"cmdline": d.Namespace,
		"cgroup":  "/" + d.Namespace,
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil && strings.Contains(string(b), mark) {
			return true
		}
	}
	return false
}

type proc struct {
	pid, ppid int
	args      []string
	state     string // of /proc/PID/stat, "Z" for a zombie
}

func (p proc) String() string {
	return fmt.Sprintf("pid %d (parent %d, state %s): %s", p.pid, p.ppid, p.state, strings.Join(p.args, " "))
}

func readProc(pid int) proc {
	p := proc{pid: pid, state: "?"}
	dir := "/proc/" + strconv.Itoa(pid)
	if b, err := os.ReadFile(dir + "/cmdline"); err == nil {
		p.args = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	}
	if b, err := os.ReadFile(dir + "/stat"); err == nil {
		// The name in parentheses may hold anything: fields count after it.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) > 1 {
			p.state = fields[0]
			p.ppid, _ = strconv.Atoi(fields[1])
		}
	}
	return p
}

// mounts lists the mount points of the daemon in this mount namespace, without
// the small file system that the test may have put at its root.
func (d *Daemon) mounts() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var found []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 &&
			strings.HasPrefix(fields[4], d.Dir+"/") && fields[4] != d.Root {
			found = append(found, fields[4])
		}
	}
	return found
}

// cgroups lists the cgroups of the daemon's containers in all hierarchies. The
// cgroup of the namespace itself, which runc leaves, is not one of them.
func (d *Daemon) cgroups() []string {
	var found []string
	for _, dir := range d.namespaceCgroups() {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && path != dir {
				found = append(found, path)
			}
			return nil // a cgroup that goes meanwhile is no error
		})
	}
	return found
}

func (d *Daemon) namespaceCgroups() []string {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && e.Name() == d.Namespace {
			found = append(found, path)
			return filepath.SkipDir
		}
		return nil
	})
	return found
}

// sockets lists the unix sockets below the daemon's directory that are in use
// by somebody, the daemon's own two left out.
func (d *Daemon) sockets() []string {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil
	}
	defer f.Close()
	seen := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || !strings.HasPrefix(fields[7], d.Dir+"/") {
			continue
		}
		if path := fields[7]; !d.ownSocket(path) {
			seen[path] = true
		}
	}
	found := make([]string, 0, len(seen))
	for path := range seen {
		found = append(found, path)
	}
	sort.Strings(found)
	return found
}

// ownSocket says whether the daemon itself listens there. A socket keeps the
// name that it was bound to, hidden ones before they got their final name.
func (d *Daemon) ownSocket(path string) bool {
	return path == d.Address || path == d.Address+".ttrpc" || strings.HasPrefix(path, d.Dir+"/.")
}

// fifoParents are where clients put the FIFOs of a container's stdio.
var fifoParents = []string{"/run/containerd/fifo", "/run/berth/fifo"}

// fifoDirs lists the FIFO directories of this daemon's containers.
func (d *Daemon) fifoDirs() []string {
	var found []string
	for _, parent := range fifoParents {
		for _, pattern := range []string{"/*/*" + d.Namespace + "-*", "/*" + d.Namespace + "-*"} {
			paths, _ := filepath.Glob(parent + pattern) // the pattern is well formed
			found = append(found, paths...)
		}
	}
	return found
}

// purge takes away all that a failed test may have left: it ends the processes
// found by the daemon's mark, by pid, then unmounts, then removes.
func (d *Daemon) purge() error {
	Poll(purgeLimit, func() bool {
		procs := d.processes()
		for _, p := range procs {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		return len(procs) == 0
	})
	var errs []error
	mounts := d.mounts()
	if d.config.RootSize > 0 {
		mounts = append([]string{d.Root}, mounts...)
	}
	for i := len(mounts) - 1; i >= 0; i-- { // the last mounted first
		if err := syscall.Unmount(mounts[i], syscall.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", mounts[i], err))
		}
	}
	for _, dir := range d.namespaceCgroups() {
		errs = append(errs, removeCgroup(dir))
	}
	for _, fifo := range d.fifoDirs() {
		errs = append(errs, os.RemoveAll(filepath.Dir(fifo)))
	}
	if left := d.mounts(); len(left) > 0 {
		// Removing through a mount would empty what is mounted.
		errs = append(errs, fmt.Errorf("%s is kept: still mounted: %v", d.Dir, left))
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, os.RemoveAll(d.Dir))...)
}

// removeCgroup removes a cgroup and those below it, the deepest first.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return ignoreNotExist(syscall.Rmdir(dir))
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Ended says whether a process has ended; its parent may not have reaped it yet.
func Ended(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	return errors.Is(err, fs.ErrNotExist) || readProc(pid).state == "Z"
}
