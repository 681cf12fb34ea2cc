package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	taskTypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestVersion(t *testing.T) {
	for _, flag := range []string{"-v", "-version", "--version"} {
		out := string(output(t, exec.Command(binary, flag)))
		for _, want := range []string{"containerd-shim-berth-v2:\n", "  Version:  ", "  Revision: ", "  Go version: go"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in %q", flag, want, out)
			}
		}
	}
}

func TestInfo(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []*options.Options{nil, {BinaryName: runc}} {
		cmd := exec.Command(binary, "-info")
		if in != nil {
			cmd.Stdin = encodeAny(t, in)
		}
		var info types.RuntimeInfo
		if err := proto.Unmarshal(output(t, cmd), &info); err != nil {
			t.Fatal(err)
		}
		if info.Name != "io.containerd.berth.v2" || info.Version.GetVersion() == "" || (info.Options == nil) != (in == nil) {
			t.Errorf("%v", &info)
		}
		var features struct {
			OCIVersionMin string   `json:"ociVersionMin"`
			Hooks         []string `json:"hooks"`
		}
		if err := json.Unmarshal(info.Features.GetValue(), &features); err != nil || features.OCIVersionMin == "" || len(features.Hooks) == 0 {
			t.Errorf("features %+v, %v", features, err)
		}
		if !strings.HasSuffix(info.Features.GetTypeUrl(), "/features/Features") {
			t.Errorf("features of type %q", info.Features.GetTypeUrl())
		}
	}
	// A runtime that is not there has no features; that is no error.
	cmd := exec.Command(binary, "-info")
	cmd.Stdin = encodeAny(t, &options.Options{BinaryName: "/no/such/runtime"})
	var info types.RuntimeInfo
	if err := proto.Unmarshal(output(t, cmd), &info); err != nil || info.Features != nil {
		t.Errorf("%v, %v", &info, err)
	}
}

// What cannot be done is said in one line, with exit status 1.
func TestRefusals(t *testing.T) {
	for want, args := range map[string][]string{
		"flag provided but not defined: -nonsense": {"-nonsense"},
		"a namespace is needed":                    {"-id", "c", "start"},
		"an id is needed":                          {"-namespace", "ns", "start"},
		`unknown action ""`:                        {"-namespace", "ns", "-id", "c"},
		`unknown action "dance"`:                   {"-namespace", "ns", "-id", "c", "dance"},
		"bundle without a spec":                    {"-namespace", "ns", "-id", "c", "start"},
		"not containerd.runc.v1.Options":           {"-info"},
	} {
		cmd := exec.Command(binary, args...)
		cmd.Dir = t.TempDir()
		if args[0] == "-info" {
			cmd.Stdin = encodeAny(t, &anypb.Any{})
		}
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		var exit *exec.ExitError
		if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s: %v", args, err)
		}
		text := errs.String()
		if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "containerd-shim-berth-v2: ") || !strings.Contains(text, want) {
			t.Errorf("%s: %q", args, text)
		}
		if out.Len() > 0 {
			t.Errorf("%s: output %q", args, out.String())
		}
	}
	if out := string(output(t, exec.Command(binary, "-h"))); !strings.HasPrefix(out, "usage: ") {
		t.Errorf("-h: %q", out)
	}
}

// A container's life under a stock daemon: one process and one socket while it
// lasts, and neither after Shutdown.
func TestDropIn(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "echo hello; exit 7", nil)
	s := d.start(bundle)
	if got, err := os.Readlink(filepath.Join(bundle, "s")); err != nil || got != filepath.Dir(s.socket) {
		t.Errorf("link to %q, %v", got, err)
	}
	pid := s.create(bundle)
	var begun taskAPI.StartResponse
	s.must("Start", &taskAPI.StartRequest{ID: "c"}, &begun)
	if int(begun.Pid) != pid {
		t.Errorf("pid %d, then %d", pid, begun.Pid)
	}
	var exit taskAPI.WaitResponse
	s.must("Wait", &taskAPI.WaitRequest{ID: "c"}, &exit)
	if exit.ExitStatus != 7 {
		t.Errorf("exit status %d", exit.ExitStatus)
	}
	var deleted taskAPI.DeleteResponse
	s.must("Delete", &taskAPI.DeleteRequest{ID: "c"}, &deleted)
	if int(deleted.Pid) != pid || deleted.ExitStatus != 7 || !proto.Equal(deleted.ExitedAt, exit.ExitedAt) {
		t.Errorf("deleted %v", &deleted)
	}
	if out, err := os.ReadFile(filepath.Join(bundle, "out")); string(out) != "hello\n" {
		t.Errorf("output %q, %v", out, err)
	}
	if mounted(t, filepath.Join(bundle, "rootfs")) {
		t.Error("the root file system is still mounted")
	}
	s.must("Shutdown", &taskAPI.ShutdownRequest{ID: "c"}, &emptypb.Empty{})
	s.ended()
	// It ends with its queue empty.
	want := []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
	if got := d.events(); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
	// As containerd does after each shim: there is nothing left to delete.
	checkDelete(t, d.command(bundle, nil, "-bundle", bundle, "delete"), pid, 7)
}

// checkDelete runs the action "delete" and checks what it prints.
func checkDelete(t *testing.T, cmd *exec.Cmd, pid int, status uint32) {
	t.Helper()
	var got taskAPI.DeleteResponse
	if err := proto.Unmarshal(output(t, cmd), &got); err != nil {
		t.Fatal(err)
	}
	if int(got.Pid) != pid || got.ExitStatus != status || got.ExitedAt == nil {
		t.Errorf("delete printed %v, want pid %d and status %d", &got, pid, status)
	}
}

// What a killed shim leaves, "delete" takes away.
func TestDeleteAfterKill(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "exec sleep 1000", nil)
	s := d.start(bundle)
	pid := s.create(bundle)
	s.must("Start", &taskAPI.StartRequest{ID: "c"}, &taskAPI.StartResponse{})
	await(t, "the end of the shim", func() bool { return reap(s.pid, unix.SIGKILL) })
	if unix.Kill(pid, 0) != nil || !mounted(t, filepath.Join(bundle, "rootfs")) {
		t.Fatal("the container went with its shim: there is nothing to see here")
	}
	checkDelete(t, d.command(bundle, nil, "-bundle", bundle, "delete"), pid, 137)
	await(t, "the end of the container", func() bool { return reap(pid, 0) })
	if mounted(t, filepath.Join(bundle, "rootfs")) {
		t.Error("the root file system is still mounted")
	}
	if left, err := os.ReadDir(filepath.Join(s.root, "ns")); err != nil || len(left) > 0 {
		t.Errorf("the runtime still knows %v, %v", left, err)
	}
	checkDelete(t, d.command(bundle, nil, "delete"), pid, 137) // a retry
}

// The containers of a group share a shim, which ends with the last.
func TestGroup(t *testing.T) {
	d := newDaemon(t)
	group := map[string]string{"io.kubernetes.cri.sandbox-id": "pod"}
	a, b := d.bundle("a", "exec sleep 1000", group), d.bundle("b", "exit 3", group)
	first := d.start(a)
	second := d.start(b)
	if first.pid != second.pid || first.socket != second.socket {
		t.Fatalf("pids %d and %d, sockets %s and %s", first.pid, second.pid, first.socket, second.socket)
	}
	first.create(a)
	second.create(b)
	second.must("Start", &taskAPI.StartRequest{ID: "b"}, &taskAPI.StartResponse{})
	var exit taskAPI.WaitResponse
	first.must("Wait", &taskAPI.WaitRequest{ID: "b"}, &exit)
	second.must("Delete", &taskAPI.DeleteRequest{ID: "b"}, &taskAPI.DeleteResponse{})
	second.must("Shutdown", &taskAPI.ShutdownRequest{ID: "b"}, &emptypb.Empty{})
	// There is a container left: the shim stays, and its calls are answered.
	var st taskAPI.StateResponse
	first.must("State", &taskAPI.StateRequest{ID: "a"}, &st)
	if exit.ExitStatus != 3 || st.Status != taskTypes.Status_CREATED {
		t.Errorf("b ended with %d, a is %s", exit.ExitStatus, st.Status)
	}
	first.must("Delete", &taskAPI.DeleteRequest{ID: "a"}, &taskAPI.DeleteResponse{})
	first.ended()
}

// SIGTERM ends an empty shim, and one with containers not; the shim says so in
// the log that the daemon reads.
func TestSIGTERM(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "exec sleep 1000", nil)
	log := openLog(t, bundle)
	s := d.start(bundle, "BERTH_SHIM_LINGER=1h")
	s.create(bundle)
	if err := unix.Kill(s.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := log.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(log).ReadString('\n')
	if err != nil || !strings.Contains(line, "not obeyed") {
		t.Fatalf("the log says %q, %v", line, err)
	}
	s.must("Delete", &taskAPI.DeleteRequest{ID: "c"}, &taskAPI.DeleteResponse{})
	if err := s.call("State", &taskAPI.StateRequest{ID: "c"}, &taskAPI.StateResponse{}); !errdefs.IsNotFound(err) {
		t.Errorf("the shim is not there: %v", err)
	}
	if err := unix.Kill(s.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.ended()
}

// An empty shim ends by itself.
func TestLinger(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "exit 0", nil)
	s := d.start(bundle, "BERTH_SHIM_LINGER=300ms")
	pid := s.create(bundle)
	s.must("Delete", &taskAPI.DeleteRequest{ID: "c"}, &taskAPI.DeleteResponse{})
	s.ended()
	if !reap(pid, 0) {
		t.Errorf("process %d of the container is left", pid)
	}
}

// A shim that was killed leaves its socket; the next one takes its place.
func TestStaleSocket(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "exit 0", nil)
	s := d.start(bundle)
	await(t, "the end of the shim", func() bool { return reap(s.pid, unix.SIGKILL) })
	next := d.start(bundle)
	if next.socket != s.socket || next.pid == s.pid {
		t.Errorf("socket %s of %d, then %s of %d", s.socket, s.pid, next.socket, next.pid)
	}
	next.must("Shutdown", &taskAPI.ShutdownRequest{}, &emptypb.Empty{})
	next.ended()
}

// The cgroup that the options name is the shim's, whatever form they come in; one
// that is not there is an error that names the option.
func TestShimCgroup(t *testing.T) {
	d := newDaemon(t)
	path := fmt.Sprintf("/berth-shim-cgroup-%d", os.Getpid())
	dirs := []string{"/sys/fs/cgroup" + path}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		dirs = []string{"/sys/fs/cgroup/memory" + path, "/sys/fs/cgroup/pids" + path}
	}
	given := &options.Options{ShimCgroup: path}
	start := func(name string, stdin io.Reader) *exec.Cmd {
		cmd := d.command(d.bundle(name, "exit 0", nil), nil, "start")
		cmd.Stdin = stdin
		return cmd
	}
	out, err := start("none", encodeAny(t, given)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "shim_cgroup") {
		t.Errorf("a cgroup that is not there: %v, %q", err, out)
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			await(t, "the end of "+dir, func() bool { return os.Remove(dir) == nil })
		})
	}
	params := &bootstrap.BootstrapParams{InstanceID: "sent", Namespace: "ns"}
	if err := params.AddExtension(given); err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	for name, stdin := range map[string]io.Reader{"sent": bytes.NewReader(data), "bare": encodeAny(t, given)} {
		cmd := start(name, stdin)
		address := string(output(t, cmd))
		if name == "sent" {
			var result bootstrap.BootstrapResult
			if err := proto.Unmarshal([]byte(address), &result); err != nil {
				t.Fatal(err)
			}
			address = result.Address
		}
		s := d.connect(cmd.Dir, address)
		for _, dir := range dirs {
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(s.pid)) {
				t.Errorf("%s: the shim %d is not in %s: %q, %v", name, s.pid, dir, procs, err)
			}
		}
		s.must("Shutdown", &taskAPI.ShutdownRequest{}, &emptypb.Empty{})
		s.ended()
	}
}

// SCHED_CORE gives the shim, or guard and shim, cores of their own; a kernel that
// cannot do that is no reason to run without.
func TestSchedCore(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "exit 0", nil)
	cookie := func(pid int) (c uint64, err error) {
		err = unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, uintptr(pid), unix.PR_SCHED_CORE_SCOPE_THREAD, uintptr(unsafe.Pointer(&c)))
		return c, err
	}
	if _, err := cookie(os.Getpid()); err == nil {
		s := d.start(bundle, "SCHED_CORE=1")
		if c, err := cookie(s.pid); err != nil || c == 0 {
			t.Errorf("the shim's cookie is %d (%v)", c, err)
		}
		s.must("Shutdown", &taskAPI.ShutdownRequest{}, &emptypb.Empty{})
		s.ended()
		return
	}
	for _, action := range []string{"start", "guard"} {
		out, err := d.command(bundle, []string{"SCHED_CORE=1"}, action).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "SCHED_CORE: core scheduling") {
			t.Errorf("%s: %v, %q", action, err, out)
		}
	}
}

// A daemon that knows nothing of parameters gets a bare address.
func TestOldDaemon(t *testing.T) {
	d := newDaemon(t)
	bundle := d.bundle("c", "exit 0", nil)
	cmd := d.command(bundle, nil, "start")
	cmd.Stdin = encodeAny(t, &options.Options{BinaryName: "runc"})
	s := d.connect(bundle, string(output(t, cmd)))
	if got, err := os.ReadFile(filepath.Join(bundle, "address")); err != nil || string(got) != "unix://"+s.socket {
		t.Errorf("address %q, %v", got, err)
	}
	if filepath.Dir(s.socket) != "/run/containerd/s" {
		t.Errorf("socket %s", s.socket)
	}
	s.must("Shutdown", &taskAPI.ShutdownRequest{}, &emptypb.Empty{})
	s.ended()
}
