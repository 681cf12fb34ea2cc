package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	errNotExist   = errors.New("container does not exist")
	errNotRunning = errors.New("container not running")
)

// container is what state.json holds. While the file exec.fifo stands beside it
// the container was created and not started.
type container struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	StartTime   string            `json:"startTime"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Paused      bool              `json:"paused"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

var validID = regexp.MustCompile(`^[\w+.-]+$`)

// setID takes the call's container from its arguments.
func (r *runtime) setID(id string) error {
	if id == "" {
		return errors.New("container id cannot be empty")
	}
	if !validID.MatchString(id) || id[0] == '.' {
		return errors.New("invalid container ID format")
	}
	r.id = id
	return nil
}

func (r *runtime) dir() string      { return filepath.Join(r.root, r.id) }
func (r *runtime) fifoPath() string { return filepath.Join(r.dir(), "exec.fifo") }

func (r *runtime) load() (*container, error) {
	if r.id == "" {
		return nil, errNotExist
	}
	data, err := os.ReadFile(filepath.Join(r.dir(), "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotExist
	}
	if err != nil {
		return nil, err
	}
	c := new(container)
	return c, json.Unmarshal(data, c)
}

func (r *runtime) save(c *container) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	tmp := filepath.Join(r.dir(), fmt.Sprintf("state.json.%d", os.Getpid()))
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(r.dir(), "state.json"))
}

// status is "created", "running", "paused" or "stopped".
func (r *runtime) status(c *container) string {
	start, alive := processStat(c.Pid)
	if !alive || start != c.StartTime {
		return "stopped"
	}
	if c.Paused {
		return "paused"
	}
	if _, err := os.Lstat(r.fifoPath()); err == nil {
		return "created"
	}
	return "running"
}

// processStat returns a process's start time. One that has ended and was not
// reaped is not alive.
func processStat(pid int) (start string, alive bool) {
	fields, alive := statFields(pid)
	if !alive {
		return "", false
	}
	return fields[19], true
}

// statFields are those of /proc/pid/stat from the third, the state, on.
func statFields(pid int) (fields []string, alive bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, false
	}
	// The name, in parentheses, may hold anything.
	end := strings.LastIndexByte(string(data), ')')
	fields = strings.Fields(string(data[end+1:]))
	// A program with threads looks like a zombie for a moment while it execs: its
	// first thread has ended, and others (field 20) have not.
	if len(fields) < 20 || fields[0] == "Z" && fields[17] == "1" || fields[0] == "X" {
		return nil, false
	}
	return fields, true
}

// markerEnv is in the environment of every process of a container.
const markerEnv = "FAKEOCI_CONTAINER"

// pids are the live processes of the container: those with the marker, and
// those in a session of one that has it. A process that is just being replaced by
// exec has no environment for a moment, but it has its session.
func (r *runtime) pids() ([]int, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	if c, err := r.load(); err == nil && r.status(c) != "stopped" {
		ours[strconv.Itoa(c.Pid)] = true
	}
	type process struct {
		pid     int
		session string
		marked  bool
	}
	var alive []process
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		fields, ok := statFields(pid)
		if !ok {
			continue
		}
		one := process{pid: pid, session: fields[3], marked: r.marked(pid)}
		if one.marked {
			ours[one.session] = true
		}
		alive = append(alive, one)
	}
	// Whatever the markers say, the caller is not the container's.
	if sid, err := unix.Getsid(0); err == nil {
		delete(ours, strconv.Itoa(sid))
	}
	pids := []int{}
	for _, p := range alive {
		if p.marked || ours[p.session] {
			pids = append(pids, p.pid)
		}
	}
	return pids, nil
}

// marked says whether a process has the container's marker. One that is gone or
// another user's has not.
func (r *runtime) marked(pid int) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	mark := markerEnv + "=" + r.dir()
	for v := range strings.SplitSeq(string(env), "\x00") {
		if v == mark {
			return true
		}
	}
	return false
}

// killAll ends every process of the container and waits until they have
// ended.
func (r *runtime) killAll() error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, err := r.pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := killAndWait(pid, time.Until(deadline)); err != nil {
				return err
			}
		}
	}
}

func killAndWait(pid int, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	// A pidfd is readable once the process has ended, reaped or not.
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(limit, 0).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = fmt.Errorf("process %d does not end", pid)
		}
		return err
	}
}
