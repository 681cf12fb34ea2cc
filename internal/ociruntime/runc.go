package ociruntime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/reap"
)

// runcState is the part of runc's state.json that start.go and delete.go go
// by. Read from the files of runc 1.1.5 and 1.5.2; no other runtime has a file
// of that form.
type runcState struct {
	ID           string            `json:"id"`
	Pid          int               `json:"init_process_pid"`
	StartTime    uint64            `json:"init_process_start"`
	Rootless     bool              `json:"rootless"`
	CgroupPaths  map[string]string `json:"cgroup_paths"`
	IntelRdtPath string            `json:"intel_rdt_path"`
	Config       *struct {
		Hooks struct {
			Poststop []json.RawMessage `json:"poststop"`
		} `json:"Hooks"`
		IntelRdt        json.RawMessage `json:"intel_rdt"`
		RootlessCgroups bool            `json:"rootless_cgroups"`
		Cgroups         *struct {
			Path    string `json:"path"`
			Systemd bool   `json:"systemd"`
		} `json:"cgroups"`
	} `json:"config"`
}

// runcDir is the directory of a container in runc's state.
func (r *Runtime) runcDir(id string) (string, bool) {
	if r.Root == "" || id == "" || id == ".." || filepath.Base(id) != id {
		return "", false
	}
	return filepath.Join(r.Root, id), true
}

// readRuncState returns false for whatever is not surely a container of runc.
func readRuncState(dir, id string) (runcState, bool) {
	var s runcState
	f, err := os.OpenFile(filepath.Join(dir, "state.json"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return s, false
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxStdout {
		return s, false
	}
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return s, false
	}
	return s, s.ID == id && s.Pid > 1 && s.Config != nil && s.Config.Cgroups != nil
}

// ended says that the container's init process is no more.
func (s *runcState) ended() bool {
	start, err := reap.StartTime(s.Pid)
	return err != nil || start != s.StartTime || reap.IsZombie(s.Pid)
}

const cgroupRoot = "/sys/fs/cgroup/"

// plainCgroups are the container's cgroups if removing their directories is
// all that is to do with them: made by runc itself, and named as the spec says.
func (s *runcState) plainCgroups() ([]string, bool) {
	c := s.Config.Cgroups
	if s.Rootless || s.Config.RootlessCgroups || c.Systemd || !strings.HasPrefix(c.Path, "/") ||
		c.Path == "/" || filepath.Clean(c.Path) != c.Path || len(s.CgroupPaths) == 0 {
		return nil, false
	}
	paths := make([]string, 0, len(s.CgroupPaths))
	for _, path := range s.CgroupPaths {
		above, ok := strings.CutSuffix(path, c.Path)
		if !ok || filepath.Clean(path) != path || !strings.HasPrefix(above+"/", cgroupRoot) {
			return nil, false
		}
		paths = append(paths, path)
	}
	return paths, true
}

// extras says that a delete has more to do than this package does.
func (s *runcState) extras() bool {
	rdt := string(s.Config.IntelRdt)
	return len(s.Config.Hooks.Poststop) > 0 || s.IntelRdtPath != "" || rdt != "" && rdt != "null"
}
