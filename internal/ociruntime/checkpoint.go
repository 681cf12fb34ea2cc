package ociruntime

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/task"
)

// CRIU are the settings that a checkpoint and its restore share. The zero
// value is the runtime's default.
type CRIU struct {
	// ImagePath is the directory of the image. It must exist.
	ImagePath string
	// WorkPath is where CRIU puts its logs. Empty: ImagePath.
	WorkPath string
	// TCPEstablished, ExternalUnixSockets, ShellJob and FileLocks allow what
	// CRIU refuses otherwise.
	TCPEstablished, ExternalUnixSockets, ShellJob, FileLocks bool
	// EmptyNamespaces are namespaces that are made but whose content is neither
	// saved nor restored.
	EmptyNamespaces []string
	// CgroupsMode is "soft", "full", "strict" or empty.
	CgroupsMode string
}

func (c CRIU) flags() []string {
	args := []string{"--image-path", c.ImagePath}
	args = appendFlag(args, "--work-path", c.WorkPath)
	for _, f := range []struct {
		flag string
		on   bool
	}{
		{"--tcp-established", c.TCPEstablished},
		{"--ext-unix-sk", c.ExternalUnixSockets},
		{"--shell-job", c.ShellJob},
		{"--file-locks", c.FileLocks},
	} {
		if f.on {
			args = append(args, f.flag)
		}
	}
	for _, ns := range c.EmptyNamespaces {
		args = append(args, "--empty-ns", ns)
	}
	return appendFlag(args, "--manage-cgroups-mode", c.CgroupsMode)
}

// CheckpointArgs are the arguments of a checkpoint.
type CheckpointArgs struct {
	ID string
	CRIU
	// ParentPath is an earlier pre-dump, relative to ImagePath.
	ParentPath string
	// LeaveRunning lets the container run on; otherwise its processes end.
	LeaveRunning bool
	// PreDump saves memory only and lets the container run on.
	PreDump   bool
	ExtraArgs []string
}

// Checkpoint saves a running container. The error of a failure ends with what
// CRIU logged of it, where it did.
func (r *Runtime) Checkpoint(ctx context.Context, a CheckpointArgs) error {
	args := append([]string{"checkpoint"}, a.flags()...)
	args = appendFlag(args, "--parent-path", a.ParentPath)
	if a.LeaveRunning {
		args = append(args, "--leave-running")
	}
	if a.PreDump {
		args = append(args, "--pre-dump")
	}
	args = append(append(args, a.ExtraArgs...), a.ID)
	begin := time.Now()
	_, err := r.call(ctx, call{op: "checkpoint", id: a.ID, args: args})
	return withCRIULog(err, a.CRIU, "dump.log", begin)
}

// RestoreArgs are the arguments of a restore.
type RestoreArgs struct {
	ID string
	CRIU
	// Bundle, PidFile, ConsoleSocket and the streams are as in [CreateArgs].
	Bundle                string
	PidFile               string
	ConsoleSocket         string
	NoPivot               bool
	ExtraArgs             []string
	Stdin, Stdout, Stderr *os.File
}

// Restore makes a container from a checkpoint and returns the pid of its init
// process, which runs. When it fails, see [Runtime.Create].
func (r *Runtime) Restore(ctx context.Context, a RestoreArgs) (int, error) {
	// The caller is the subreaper and must stay it.
	args := []string{"restore", "--detach", "--no-subreaper", "--bundle", a.Bundle, "--pid-file", a.PidFile}
	args = append(args, a.flags()...)
	args = appendFlag(args, "--console-socket", a.ConsoleSocket)
	if a.NoPivot {
		args = append(args, "--no-pivot")
	}
	begin := time.Now()
	pid, err := r.spawn(ctx, spawnArgs{
		op: "restore", id: a.ID, args: append(args, a.ExtraArgs...),
		pidFile: a.PidFile, terminal: a.ConsoleSocket != "",
		stdin: a.Stdin, stdout: a.Stdout, stderr: a.Stderr,
	})
	return pid, withCRIULog(err, a.CRIU, "restore.log", begin)
}

// maxCRIULog is how much of CRIU's log is searched.
const maxCRIULog = 8 << 20

// withCRIULog adds what CRIU's log says to a failure: the runtime only says
// that CRIU failed. A log that was not touched since begin is of an earlier
// call.
func withCRIULog(err error, c CRIU, name string, begin time.Time) error {
	var failed *task.RuntimeError
	if !errors.As(err, &failed) {
		return err
	}
	dir := c.WorkPath
	if dir == "" {
		dir = c.ImagePath
	}
	if text := criuErrors(filepath.Join(dir, name), begin); text != "" {
		failed.Message += "; CRIU: " + text
	}
	return err
}

// maxCRIUErrors is how many errors are quoted: the first is the cause, what
// follows says where it led.
const maxCRIUErrors = 3

// criuErrors returns the first errors of a log, or its last line where it has
// none.
func criuErrors(path string, begin time.Time) string {
	f, err := openLog(path, os.O_RDONLY)
	if err != nil {
		return ""
	}
	defer f.Close()
	// Time stamps of files come from a coarser clock.
	if info, err := f.Stat(); err != nil || info.ModTime().Before(begin.Add(-time.Second)) {
		return ""
	}
	var found []string
	last := ""
	lines := bufio.NewScanner(io.LimitReader(f, maxCRIULog))
	for lines.Scan() {
		if _, text, ok := strings.Cut(lines.Text(), "Error "); ok {
			found = append(found, "Error "+text)
		}
		if len(found) == maxCRIUErrors {
			break
		}
		if text := strings.TrimSpace(lines.Text()); text != "" {
			last = text
		}
	}
	if len(found) == 0 {
		return shorten(last)
	}
	return shorten(strings.Join(found, "; "))
}
