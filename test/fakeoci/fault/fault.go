// Package fault is the language in which a test orders failures from the fake
// OCI runtime: a file of rules that the runtime reads at every call.
package fault

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// FileName is the name of the rule file, in the runtime's --root or in one of
	// the directories below.
	FileName = "faults.json"
	// DirEnv names an environment variable, and DirAnnotation an annotation of
	// the spec, with another directory that may hold a rule file.
	DirEnv        = "FAKEOCI_FAULTS"
	DirAnnotation = "dev.berth.fakeoci.faults"
)

// Point is a moment of a call.
type Point string

const (
	// Before is before the call has any effect. It is the default.
	Before Point = "before"
	// Middle is when create, exec and restore have started their process and
	// written their state, but no pid file.
	Middle Point = "middle"
	// After is when everything is done but the exit.
	After Point = "after"
)

// Action is what goes wrong.
type Action string

const (
	// Exit ends the call with Code and logs Message as an error.
	Exit Action = "exit"
	// Hang never returns.
	Hang Action = "hang"
	// Crash is SIGKILL.
	Crash Action = "crash"
	// Sleep waits for SleepMillis and goes on.
	Sleep Action = "sleep"
	// BadPid writes Message to the pid file instead of the pid.
	BadPid Action = "bad-pid"
	// NoPid writes no pid file.
	NoPid Action = "no-pid"
)

// Rule is one order.
type Rule struct {
	// Op is the subcommand. ID is a pattern as of path.Match; empty is any.
	Op string `json:"op"`
	ID string `json:"id,omitempty"`
	// At is not used by BadPid and NoPid.
	At          Point  `json:"at,omitempty"`
	Action      Action `json:"action"`
	Code        int    `json:"code,omitempty"`
	Message     string `json:"message,omitempty"`
	SleepMillis int    `json:"sleepMillis,omitempty"`
	// Times is how often the rule applies; 0 is always.
	Times int `json:"times,omitempty"`
}

// File is the content of a rule file. Of the rules that match, the first
// applies.
type File struct {
	// Generation tells a new order from an old one with the same rules, whose
	// count starts again.
	Generation string `json:"generation,omitempty"`
	Rules      []Rule `json:"rules"`
}

// Write puts the rules into dir, in one step.
func Write(dir string, f File) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+FileName+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, FileName))
}

// Set is the rules of one directory.
type Set struct {
	dir  string
	hash string
	file File
}

// Load reads the rules of dir. A directory without a rule file has none.
func Load(dir string) (*Set, error) {
	data, err := os.ReadFile(filepath.Join(dir, FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return &Set{dir: dir}, nil
	}
	if err != nil {
		return nil, err
	}
	s := &Set{dir: dir, hash: fmt.Sprintf("%x", sha256.Sum256(data))[:16]}
	if err := json.Unmarshal(data, &s.file); err != nil {
		return nil, fmt.Errorf("%s in %s: %w", FileName, dir, err)
	}
	for i, r := range s.file.Rules {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("%s in %s: rule %d: %w", FileName, dir, i, err)
		}
	}
	return s, nil
}

// check refuses a rule that could never apply: the test that wrote it would
// pass for the wrong reason.
func (r Rule) check() error {
	switch r.Action {
	case Exit, Hang, Crash, Sleep, BadPid, NoPid:
	default:
		return fmt.Errorf("unknown action %q", r.Action)
	}
	spawns := r.Op == "create" || r.Op == "exec" || r.Op == "restore"
	if !spawns && (r.At == Middle || r.Action == BadPid || r.Action == NoPid) {
		return fmt.Errorf("%q has no pid file", r.Op)
	}
	switch r.At {
	case "", Before, Middle, After:
	default:
		return fmt.Errorf("unknown point %q", r.At)
	}
	_, err := path.Match(r.ID, "x")
	return err
}

// Take returns the rule that applies now, if there is one, and counts it.
func (s *Set) Take(op, id string, at Point) (Rule, bool, error) {
	return s.take(op, id, func(r Rule) bool {
		point := r.At
		if point == "" {
			point = Before
		}
		return r.Action != BadPid && r.Action != NoPid && point == at
	})
}

// TakePid is Take for the rules about pid files.
func (s *Set) TakePid(op, id string) (Rule, bool, error) {
	return s.take(op, id, func(r Rule) bool { return r.Action == BadPid || r.Action == NoPid })
}

func (s *Set) take(op, id string, wanted func(Rule) bool) (Rule, bool, error) {
	for i, r := range s.file.Rules {
		if r.Op != op || !wanted(r) {
			continue
		}
		if ok, _ := path.Match(r.ID, id); r.ID != "" && !ok {
			continue
		}
		ok, err := s.count(i, r.Times)
		if err != nil {
			return Rule{}, false, err
		}
		if ok {
			return r, true, nil
		}
	}
	return Rule{}, false, nil
}

func (s *Set) countFile(rule int) string {
	return filepath.Join(s.dir, fmt.Sprintf(".faults-%s-%d", s.hash, rule))
}

// count adds one to a rule's count unless that is at the limit. Calls run at the
// same time, hence the lock.
func (s *Set) count(rule, limit int) (bool, error) {
	f, err := os.OpenFile(s.countFile(rule), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, err
	}
	buf := make([]byte, 20)
	n, _ := f.ReadAt(buf, 0)
	used, _ := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if limit > 0 && used >= limit {
		return false, nil
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(used+1)), 0)
	return err == nil, err
}

// Hits says how often rule i has applied.
func (s *Set) Hits(rule int) (int, error) {
	data, err := os.ReadFile(s.countFile(rule))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(data) == 0 {
		return 0, nil // about to be counted
	}
	return strconv.Atoi(string(data))
}
