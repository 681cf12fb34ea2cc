// Package ociruntime calls a runc-compatible OCI runtime binary: one child
// process a call, every call bounded in time, and what the runtime logged as a
// typed error (*task.RuntimeError).
//
// It knows the command line and nothing else: it keeps no state of containers,
// takes no lock and never retries.
package ociruntime

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	defaultBinary  = "runc"
	defaultTimeout = 2 * time.Minute
)

// Runtime says which runtime binary to call and how. It is a value: make one
// for each container. Its methods may be called from many goroutines.
//
// Every method returns a *task.RuntimeError when the call fails. Its Class is
// an errdefs sentinel where the runtime's text is known, and its Message is
// that text, unchanged.
type Runtime struct {
	// Binary is a path, or a name that is looked up in PATH. Empty is "runc".
	Binary string
	// Root is the directory of the runtime's own state (--root). Empty leaves
	// it to the runtime.
	Root string
	// SystemdCgroup makes the runtime ask systemd for cgroups.
	SystemdCgroup bool
	// LogPath is the file that the runtime logs to, as JSON lines. It is
	// created if need be, and emptied when it has grown beyond 1 MiB. Empty:
	// errors are taken from the runtime's stderr alone.
	//
	// Calls that run at the same time share the file. Exec has a file of its
	// own; for the others, an entry that the runtime also printed to stderr is
	// preferred to one that it did not.
	LogPath string
	// Timeout bounds each call: a runtime that takes longer is killed. 0 is two
	// minutes.
	Timeout time.Duration
	// OpenFIFO opens for reading the FIFO at which init waits for its start, of
	// which the argument is an O_PATH descriptor. Init ends if its reader does
	// before it has written: this lets the reader outlive a caller that is
	// killed. The result is closed by Start. nil, or an error: Start opens it.
	OpenFIFO func(fifo int) (int, error)
}

// CreateArgs are the arguments of a create.
type CreateArgs struct {
	ID string
	// Bundle is the absolute path of the bundle directory.
	Bundle string
	// PidFile is where the runtime writes the pid of init. A file that is
	// there already is removed first.
	PidFile string
	// ConsoleSocket is the path of a socket that receives the master of the
	// terminal. Empty: no terminal.
	ConsoleSocket string
	NoPivot       bool
	NoNewKeyring  bool
	// ExtraArgs are put before the id as they are.
	ExtraArgs []string
	// Stdin, Stdout and Stderr become the container's; nil is the null device.
	// The caller keeps its copies and closes them.
	Stdin, Stdout, Stderr *os.File
}

// Create makes a container and returns the pid of its init process, which
// waits for Start. When it fails, a container may be there all the same (the
// runtime was killed late, or wrote no pid): the caller runs Delete with force.
func (r *Runtime) Create(ctx context.Context, a CreateArgs) (int, error) {
	args := []string{"create", "--bundle", a.Bundle, "--pid-file", a.PidFile}
	args = appendFlag(args, "--console-socket", a.ConsoleSocket)
	if a.NoPivot {
		args = append(args, "--no-pivot")
	}
	if a.NoNewKeyring {
		args = append(args, "--no-new-keyring")
	}
	return r.spawn(ctx, spawnArgs{
		op: "create", id: a.ID, args: append(args, a.ExtraArgs...),
		pidFile: a.PidFile, terminal: a.ConsoleSocket != "",
		stdin: a.Stdin, stdout: a.Stdout, stderr: a.Stderr,
	})
}

// ExecArgs are the arguments of an exec.
type ExecArgs struct {
	ID string
	// ProcessFile is the path of the OCI process as JSON. While the call runs,
	// its log stands beside it, with ".log" added to the name.
	ProcessFile   string
	PidFile       string
	ConsoleSocket string
	ExtraArgs     []string
	// Stdin, Stdout and Stderr are as in [CreateArgs].
	Stdin, Stdout, Stderr *os.File
}

// Exec adds a process to a running container and returns its pid. It does not
// wait for the process.
func (r *Runtime) Exec(ctx context.Context, a ExecArgs) (int, error) {
	args := []string{"exec", "--process", a.ProcessFile, "--detach", "--pid-file", a.PidFile}
	args = appendFlag(args, "--console-socket", a.ConsoleSocket)
	own := *r
	if r.LogPath != "" {
		own.LogPath = a.ProcessFile + ".log"
		defer mergeLog(own.LogPath, r.LogPath)
	}
	return own.spawn(ctx, spawnArgs{
		op: "exec", id: a.ID, args: append(args, a.ExtraArgs...),
		pidFile: a.PidFile, terminal: a.ConsoleSocket != "",
		stdin: a.Stdin, stdout: a.Stdout, stderr: a.Stderr,
	})
}

// Kill sends a signal to the container's init process; with all, to every
// process of the container. A container whose init has ended is NotFound.
func (r *Runtime) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	args := []string{"kill"}
	if all {
		args = append(args, "--all")
	}
	_, err := r.call(ctx, call{op: "kill", args: append(args, id, strconv.Itoa(int(sig))), id: id})
	return err
}

// Pause freezes all processes of the container.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.simple(ctx, "pause", id)
}

// Resume undoes Pause.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	return r.simple(ctx, "resume", id)
}

// maxResources bounds what Update hands to the runtime.
const maxResources = 1 << 20

// Update changes the container's limits. The resources are OCI LinuxResources
// as JSON; what they leave out stays as it is.
func (r *Runtime) Update(ctx context.Context, id string, resources []byte) error {
	if len(resources) > maxResources {
		return r.failure("update", fmt.Sprintf("resources of %d bytes are more than %d", len(resources), maxResources), nil, errdefs.ErrInvalidArgument)
	}
	in, err := memoryFile("resources", resources)
	if err != nil {
		return r.failure("update", "", err, nil)
	}
	defer in.Close()
	_, err = r.call(ctx, call{op: "update", args: []string{"update", "--resources=-", id}, id: id, stdin: in})
	return err
}

// memoryFile returns a file without a name that holds the data, at its start.
// Unlike a pipe it needs no writer beside the reader.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// simple calls a subcommand that takes flags and an id and prints nothing.
func (r *Runtime) simple(ctx context.Context, op, id string, flags ...string) error {
	args := append([]string{op}, flags...)
	_, err := r.call(ctx, call{op: op, args: append(args, id), id: id})
	return err
}

func (r *Runtime) binary() string {
	if r.Binary == "" {
		return defaultBinary
	}
	return r.Binary
}

func (r *Runtime) timeout() time.Duration {
	if r.Timeout <= 0 {
		return defaultTimeout
	}
	return r.Timeout
}

// globalFlags come before the subcommand.
func (r *Runtime) globalFlags() []string {
	var args []string
	args = appendFlag(args, "--root", r.Root)
	if r.LogPath != "" {
		args = append(args, "--log", r.LogPath, "--log-format", "json")
	}
	if r.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	return args
}

func appendFlag(args []string, flag, value string) []string {
	if value == "" {
		return args
	}
	return append(args, flag, value)
}

// checkID refuses an id that the runtime would take for a flag or for a path.
func checkID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("the container id is empty: %w", errdefs.ErrInvalidArgument)
	case id[0] == '-', id == ".", id == "..", strings.ContainsAny(id, "/\x00"):
		return fmt.Errorf("container id %q is not valid: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}
