package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/test/fakeoci/faketest"
)

// TestDeleteAction runs the action "delete", with runc, on what a killed shim
// has left in every state, also of a delete that was half done: it leaves
// nothing, and tells the exit.
func TestDeleteAction(t *testing.T) {
	root := func(s *served) string { return filepath.Join(s.root, "ns", "c") }
	for name, c := range map[string]struct {
		bring  func(s *served)
		status uint32
	}{
		"created": {func(*served) {}, 137},
		"running": {func(s *served) { begin(s) }, 137},
		"paused": {func(s *served) {
			begin(s)
			s.must("Pause", &taskAPI.PauseRequest{ID: "c"}, &emptypb.Empty{})
		}, 137},
		"stopped": {func(s *served) {
			begin(s)
			s.must("Kill", &taskAPI.KillRequest{ID: "c", Signal: 9}, &emptypb.Empty{})
			s.must("Wait", &taskAPI.WaitRequest{ID: "c"}, &taskAPI.WaitResponse{})
		}, 137},
		"unmounted": {func(s *served) {
			begin(s)
			if err := unix.Unmount(filepath.Join(s.bundle, "rootfs"), unix.MNT_DETACH); err != nil {
				s.t.Fatal(err)
			}
		}, 137},
		"forgotten by the runtime": {func(s *served) {
			out, err := exec.Command("runc", "--root", filepath.Dir(root(s)), "delete", "--force", "c").CombinedOutput()
			if err != nil {
				s.t.Fatalf("%v: %s", err, out)
			}
		}, 137},
		"without its files": {func(s *served) {
			begin(s)
			for _, file := range []string{"berth.json", "init.pid", "log.json"} {
				if err := os.Remove(filepath.Join(s.bundle, file)); err != nil {
					s.t.Fatal(err)
				}
			}
		}, 137},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			bundle := d.bundle("c", "sleep 1000 & sleep 1000", nil)
			hostPids(t, bundle)
			s := d.start(bundle)
			pid := s.create(bundle)
			c.bring(s)
			await(t, "the end of the shim", func() bool { return reap(s.pid, unix.SIGKILL) })
			if name == "without its files" {
				pid = 0
			}
			for range 2 { // it may be run again
				checkDelete(t, d.command(bundle, nil, "-bundle", bundle, "delete"), pid, c.status)
			}
			if mounted(t, filepath.Join(bundle, "rootfs")) {
				t.Error("the root file system is still mounted")
			}
			if _, err := os.Stat(root(s)); !os.IsNotExist(err) {
				t.Errorf("the runtime still knows it: %v", err)
			}
			await(t, "the end of every process", func() bool { return !anyIn(bundle) })
			cgroups, err := filepath.Glob("/sys/fs/cgroup/*/berth-shim-" + strconv.Itoa(os.Getpid()) + "-c")
			if err != nil || len(cgroups) > 0 {
				t.Errorf("cgroups %v (%v) are left", cgroups, err)
			}
		})
	}
}

func begin(s *served) {
	s.t.Helper()
	s.must("Start", &taskAPI.StartRequest{ID: "c"}, &taskAPI.StartResponse{})
}

// hostPids takes the container's pid namespace away: its processes do not end
// with init. They are known by their root directory.
func hostPids(t *testing.T, bundle string) {
	t.Helper()
	spec := faketest.ReadSpec(t, bundle)
	var left []specs.LinuxNamespace
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type != specs.PIDNamespace {
			left = append(left, ns)
		}
	}
	spec.Linux.Namespaces = left
	spec.Process.Env = append(spec.Process.Env, "BUNDLE="+bundle)
	faketest.WriteJSON(t, filepath.Join(bundle, "config.json"), spec)
}

// anyIn reaps what has become ours, and says whether a process of the bundle lives.
func anyIn(bundle string) bool {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !strings.Contains(string(env), "BUNDLE="+bundle+"\x00") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if !reap(pid, 0) {
			return true
		}
	}
	return false
}
