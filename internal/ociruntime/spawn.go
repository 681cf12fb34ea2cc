package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// spawnArgs describe a call that leaves a process of the container behind.
type spawnArgs struct {
	op, id                string
	args                  []string
	pidFile               string
	terminal              bool
	stdin, stdout, stderr *os.File
}

// spawn runs the call and returns the pid of the process that it left.
func (r *Runtime) spawn(ctx context.Context, a spawnArgs) (int, error) {
	if err := os.Remove(a.pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, r.failure(a.op, fmt.Sprintf("an old pid file is in the way: %v", err), err, nil)
	}
	_, err := r.call(ctx, call{
		op: a.op, id: a.id, args: append(a.args, a.id),
		stdin: a.stdin, stdout: a.stdout, stderr: a.stderr,
		// With a terminal the process gets that, and the runtime's stderr is
		// nobody else's.
		inherited: !a.terminal,
	})
	if err != nil {
		return 0, err
	}
	pid, err := readPid(a.pidFile)
	if err != nil {
		return 0, r.failure(a.op, fmt.Sprintf("%s succeeded but left no valid pid: %v", r.binary(), err), err, errdefs.ErrInternal)
	}
	return pid, nil
}

// maxPid is the kernel's PID_MAX_LIMIT.
const maxPid = 1 << 22

// readPid reads a pid file. Neither init nor the caller can be a container's
// process: a signal to them must never come out of a bad file.
func readPid(path string) (int, error) {
	f, err := openLog(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 || pid > maxPid || pid == os.Getpid() {
		return 0, fmt.Errorf("%s holds %q, which is no pid of a container", path, data)
	}
	return pid, nil
}
