package ociruntime_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/ociruntime"
)

func TestCheckpointAndRestore(t *testing.T) {
	b := newBench(t, subjects[0])
	c := b.running()
	image := t.TempDir()
	args := ociruntime.CheckpointArgs{ID: c.id, CRIU: ociruntime.CRIU{ImagePath: image}, LeaveRunning: true}
	if err := b.Checkpoint(ctx(t), args); err != nil {
		t.Fatal(err)
	}
	if got := c.status(); got != "running" {
		t.Errorf("status is %q after a checkpoint that leaves it running", got)
	}
	args.LeaveRunning = false
	if err := b.Checkpoint(ctx(t), args); err != nil {
		t.Fatal(err)
	}
	reap(t, c.pid)
	if got := c.status(); got != "stopped" {
		t.Errorf("status is %q after a checkpoint", got)
	}

	r := b.newBox(shell("echo restored; exit 5"))
	outR, outW := pipe(t)
	pid, err := b.Restore(ctx(t), ociruntime.RestoreArgs{
		ID: r.id, Bundle: r.bundle, PidFile: filepath.Join(r.bundle, "init.pid"),
		CRIU: ociruntime.CRIU{ImagePath: image}, Stdout: outW,
	})
	if err != nil {
		t.Fatal(err)
	}
	outW.Close()
	if out := readAll(t, outR); out != "restored\n" {
		t.Errorf("stdout is %q", out)
	}
	if got := reap(t, pid); got != 5 {
		t.Errorf("exit status is %d", got)
	}
}

// Every setting has its flag, and the id comes last.
func TestCRIUFlags(t *testing.T) {
	b := newBench(t, subjects[0])
	err := b.Checkpoint(ctx(t), ociruntime.CheckpointArgs{
		ID: "x", ParentPath: "../parent", LeaveRunning: true, PreDump: true, ExtraArgs: []string{"--shell-job"},
		CRIU: ociruntime.CRIU{
			ImagePath: "/img", WorkPath: "/criu", TCPEstablished: true, ExternalUnixSockets: true, ShellJob: true,
			FileLocks: true, EmptyNamespaces: []string{"network", "ipc"}, CgroupsMode: "soft",
		},
	})
	wantError(t, err, "checkpoint", errdefs.ErrNotFound, "container does not exist")
	want := "checkpoint --image-path /img --work-path /criu --tcp-established --ext-unix-sk --shell-job --file-locks " +
		"--empty-ns network --empty-ns ipc --manage-cgroups-mode soft --parent-path ../parent --leave-running --pre-dump --shell-job x"
	if got := b.calls("checkpoint"); !slices.Equal(got, []string{want}) {
		t.Errorf("calls are %q", got)
	}
}

// The runtime only says that CRIU failed; CRIU's log says why.
func TestCRIULog(t *testing.T) {
	work := t.TempDir()
	r := logging(t, `{"level":"error","msg":"criu failed: type NOTIFY errno 0"}`, "")
	r.Binary = script(t, "echo '(00.1) Error (criu/x.c:7): no such page' > "+work+"/dump.log\n"+
		"echo '(00.2) Error (criu/y.c:8): dumping failed' >> "+work+"/dump.log\n"+
		`echo '{"level":"error","msg":"criu failed: type NOTIFY errno 0"}' >> $2; exit 1`)
	args := ociruntime.CheckpointArgs{ID: "x", CRIU: ociruntime.CRIU{ImagePath: "/img", WorkPath: work}}
	wantError(t, r.Checkpoint(ctx(t), args), "checkpoint", nil,
		"criu failed: type NOTIFY errno 0; CRIU: Error (criu/x.c:7): no such page; Error (criu/y.c:8): dumping failed")

	// A log of an earlier call has nothing to do with this failure.
	if err := os.Chtimes(filepath.Join(work, "dump.log"), longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	r = logging(t, "", "no")
	err := r.Checkpoint(ctx(t), args)
	if wantError(t, err, "checkpoint", nil, "no"); strings.Contains(err.Error(), "CRIU") {
		t.Errorf("an old log is quoted: %v", err)
	}
}
