package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/task"
)

// The bundle holds, besides what the shim contract asks for (options.json,
// runtime, init.pid, exit.json):
//
//	berth.json          the container: [record]
//	execs/ID.json       an exec: [execRecord]
//	execs/ID.process    its OCI process
//	ID.pid              its pid, written by the OCI runtime
//
// Every file is replaced by rename. Nothing is synced to disk: a bundle does
// not outlive the machine's boot.
const (
	recordFile = "berth.json"
	exitFile   = "exit.json"
	execDir    = "execs"
)

// record is what a successor needs to take a container up. Op names a runtime
// call that was begun and not finished.
type record struct {
	ID         task.ID      `json:"id"`
	Status     string       `json:"status"`
	Op         string       `json:"op,omitempty"`
	Pid        int          `json:"pid,omitempty"`
	StartTime  uint64       `json:"startTime,omitempty"`
	Stdio      task.Stdio   `json:"stdio"`
	Options    Options      `json:"options"`
	Checkpoint string       `json:"checkpoint,omitempty"`
	Cgroup     cgroup.Paths `json:"cgroup,omitempty"`
	SharedPID  bool         `json:"sharedPid,omitempty"`
	// Waiting is the program of init while it waits for its start: the
	// runtime's own. Afterwards it is another.
	Waiting string     `json:"waiting,omitempty"`
	Exit    *task.Exit `json:"exit,omitempty"`
	Owed    []owed     `json:"owed,omitempty"`
	// OOMKills is how many kills for memory were told.
	OOMKills uint64 `json:"oomKills,omitempty"`
}

type execRecord struct {
	ID        string     `json:"id"`
	Status    string     `json:"status"`
	Op        string     `json:"op,omitempty"`
	Pid       int        `json:"pid,omitempty"`
	StartTime uint64     `json:"startTime,omitempty"`
	Stdio     task.Stdio `json:"stdio"`
	Exit      *task.Exit `json:"exit,omitempty"`
	Owed      []owed     `json:"owed,omitempty"`
}

// exitRecord is exit.json in the form that a stock shim's `delete` reads.
type exitRecord struct {
	Timestamp time.Time
	Pid       int
	Status    int
	OOMKilled bool   `json:",omitempty"`
	Reason    string `json:",omitempty"`
}

// writeFile replaces a file in one step.
func writeFile(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return replaceFile(path, data)
}

func replaceFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// maxRecord bounds what is read back.
const maxRecord = 1 << 20

func readFile(path string, v any) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Size() > maxRecord {
		return fmt.Errorf("%s has %d bytes", path, st.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func selfPid() int { return os.Getpid() }

// save writes the container's record. It is called before a runtime call with
// that call's name, and after it with "".
func (c *Container) save(op task.Operation, begun bool) error {
	c.saveMu.Lock()
	defer c.saveMu.Unlock()
	c.savedOp = ""
	if begun {
		c.savedOp = op.String()
	}
	return c.saveLocked()
}

// saveAgain writes the record beside a call that may be under way.
func (c *Container) saveAgain() error {
	c.saveMu.Lock()
	defer c.saveMu.Unlock()
	return c.saveLocked()
}

// saveLocked is for who holds saveMu.
func (c *Container) saveLocked() error {
	c.mu.Lock()
	p := c.init
	r := record{
		ID: c.id, Status: p.status.String(), Pid: p.pid, StartTime: p.startTime, Stdio: p.stdio,
		Options: c.options, Checkpoint: c.checkpoint, Cgroup: c.cgroupPaths, SharedPID: c.sharedPID,
		Waiting: c.waiting, Exit: p.exit, Owed: slices.Clone(p.owed), OOMKills: c.oomKills, Op: c.savedOp,
	}
	// Also when the write fails: an event that comes twice is better than none.
	p.stored = len(p.owed)
	c.mu.Unlock()
	return writeFile(filepath.Join(c.bundle, recordFile), r)
}

func (p *process) saveExec(op string) error {
	p.c.mu.Lock()
	r := execRecord{
		ID: p.id, Status: p.status.String(), Op: op, Pid: p.pid, StartTime: p.startTime, Stdio: p.stdio, Exit: p.exit,
		Owed: slices.Clone(p.owed),
	}
	p.stored = len(p.owed)
	p.c.mu.Unlock()
	return writeFile(p.recordPath(), r)
}

func (p *process) recordPath() string {
	return filepath.Join(p.c.bundle, execDir, p.id+".json")
}

func (p *process) specPath() string {
	return filepath.Join(p.c.bundle, execDir, p.id+".process")
}

func (p *process) pidPath() string {
	if p.kind == task.Init {
		return filepath.Join(p.c.bundle, "init.pid")
	}
	return filepath.Join(p.c.bundle, p.id+".pid")
}

// specView is the part of config.json that the shim itself looks at.
type specView struct {
	Process *processView `json:"process"`
	Linux   *struct {
		Namespaces []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
	} `json:"linux"`
}

type processView struct {
	OOMScoreAdj *int `json:"oomScoreAdj"`
	ConsoleSize *struct {
		Height uint `json:"height"`
		Width  uint `json:"width"`
	} `json:"consoleSize"`
}

func (v *processView) size() task.ConsoleSize {
	if v == nil || v.ConsoleSize == nil {
		return task.ConsoleSize{}
	}
	return task.ConsoleSize{
		Width:  uint16(min(v.ConsoleSize.Width, 1<<16-1)),
		Height: uint16(min(v.ConsoleSize.Height, 1<<16-1)),
	}
}

// maxSpec bounds config.json.
const maxSpec = 16 << 20

func readSpec(bundle string) (specView, error) {
	var v specView
	path := filepath.Join(bundle, "config.json")
	st, err := os.Stat(path)
	if err != nil {
		return v, fmt.Errorf("bundle without a spec: %w", err)
	}
	if st.Size() > maxSpec {
		return v, fmt.Errorf("%s has %d bytes, more than %d", path, st.Size(), maxSpec)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// sharedPID says that processes of the container can outlive its init: it has
// no pid namespace of its own, so the kernel does not kill them with it.
func (v *specView) sharedPID() bool {
	if v.Linux == nil {
		return true
	}
	for _, ns := range v.Linux.Namespaces {
		if ns.Type == "pid" {
			return ns.Path != ""
		}
	}
	return true
}
