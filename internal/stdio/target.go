package stdio

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/logfile"
	"github.com/berthd/berth/task"
)

// target is the parsed value of one stream.
type target struct {
	stream string // "stdin", "stdout", "stderr"
	path   string // empty for the null device
	want   targetKind
	create bool           // make the file when it does not exist
	log    logfile.Config // of a logKind
	logger *loggerSpec    // of a loggerKind
}

type targetKind uint8

const (
	anyKind targetKind = iota
	fifoKind
	fileKind
	logKind
	loggerKind
)

func (t target) null() bool { return t.path == "" || t.path == os.DevNull }

// parseTarget reads the value that a client gave for a stream. What it cannot
// use is InvalidArgument.
func parseTarget(stream, value string) (target, error) {
	t := target{stream: stream, path: value}
	scheme, _, isURI := strings.Cut(value, "://")
	if isURI {
		if scheme == logfile.Scheme && stream != "stdin" {
			return parseLog(t)
		}
		u, err := url.Parse(value)
		if err != nil {
			return target{}, t.invalid(value, "it is not a valid URI")
		}
		if stream != "stdin" && (u.Scheme == "binary" || u.Scheme == "binary-v2") {
			t.path, t.want = u.Path, loggerKind
			t.logger, err = t.parseLogger(u)
			return t, err
		}
		if u.Host != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return target{}, t.invalid(value, "only a path may follow "+scheme+"://")
		}
		t.path = u.Path
		switch u.Scheme {
		case "fifo":
			t.want = fifoKind
		case "file":
			t.want, t.create = fileKind, stream != "stdin"
		default:
			return target{}, t.invalid(value, "the scheme is not supported; use the path of a FIFO or file, fifo://, file://, json-file://, binary:// or binary-v2://")
		}
	}
	switch {
	case value == "":
		return t, nil
	case strings.ContainsRune(t.path, 0) || len(t.path) >= unix.PathMax:
		return target{}, t.invalid("", "the path has a NUL byte or is too long")
	case !filepath.IsAbs(t.path):
		return target{}, t.invalid(value, "the path must be absolute")
	}
	return t, nil
}

// findLogger returns the logger that has the outputs; nil when there is none.
// It has both of them, as with stock shims; stderr must name the same or nothing.
func findLogger(stdio task.Stdio) (*loggerSpec, error) {
	t, err := parseTarget("stdout", stdio.Stdout)
	if err != nil || t.want != loggerKind {
		return nil, err
	}
	if !stdio.Terminal && stdio.Stderr != "" && stdio.Stderr != stdio.Stdout {
		t.stream = "stderr"
		return nil, t.invalid(stdio.Stderr, "stdout is a logger, which has both outputs: use the same URI")
	}
	return t.logger, nil
}

func parseLog(t target) (_ target, err error) {
	t.want = logKind
	if t.log, err = logfile.Parse(t.path); err != nil {
		return target{}, fmt.Errorf("%s: %w", t.stream, err)
	}
	t.path = t.log.Path
	return t, nil
}

func (t target) invalid(value, why string) error {
	return fmt.Errorf("%s %q: %s: %w", t.stream, value, why, errdefs.ErrInvalidArgument)
}

// fail puts a name and a class to an error of the system.
func (t target) fail(err error) error {
	var class error
	switch {
	case errors.Is(err, unix.ENOENT):
		class = errdefs.ErrNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		class = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENAMETOOLONG):
		class = errdefs.ErrInvalidArgument
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		class = errdefs.ErrResourceExhausted
	default:
		return fmt.Errorf("open %s %q: %w", t.stream, t.path, err)
	}
	return fmt.Errorf("open %s %q: %w (%w)", t.stream, t.path, err, class)
}

// node identifies a file whatever its path.
type node struct{ dev, ino uint64 }

// openedTarget is a target that was found and whose type was checked. Its
// descriptor is of the O_PATH kind: to get it nothing was opened that an open
// could wake, rewind or block on.
type openedTarget struct {
	target
	fd   int // -1 for the null device and a log
	kind sinkKind
	node node
}

// findTarget opens what a client gave for a stream.
func findTarget(stream, value string) (openedTarget, error) {
	t, err := parseTarget(stream, value)
	if err != nil {
		return openedTarget{}, err
	}
	return openTarget(t)
}

func openTarget(t target) (openedTarget, error) {
	null := openedTarget{target: t, fd: -1, kind: toNull}
	if t.null() {
		return null, nil
	}
	if t.want == loggerKind {
		return openedTarget{}, t.invalid(t.path, "a logger has both outputs: it must be named as stdout")
	}
	if t.want == logKind {
		return openedTarget{target: t, fd: -1, kind: toLog}, nil
	}
	fd, err := openPath(t)
	if err != nil {
		return openedTarget{}, t.fail(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return openedTarget{}, t.fail(err)
	}
	o := openedTarget{target: t, fd: fd, node: node{st.Dev, st.Ino}}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFIFO && t.want != fileKind:
		o.kind = toFIFO
	case kind == unix.S_IFREG && t.want != fifoKind:
		o.kind = toFile
	case kind == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) && t.want != fifoKind:
		o.close()
		return null, nil
	default:
		o.close()
		return openedTarget{}, t.invalid(t.path, "it is a "+modeName(kind)+", not a "+t.want.String())
	}
	return o, nil
}

func (o *openedTarget) close() {
	if o.fd >= 0 {
		_ = unix.Close(o.fd)
		o.fd = -1
	}
}

// openPath finds the file of a target, and makes it where that is asked for.
func openPath(t target) (int, error) {
	const flags = unix.O_PATH | unix.O_CLOEXEC
	fd, err := openRetry(t.path, flags, 0)
	if err != unix.ENOENT || !t.create {
		return fd, err
	}
	if err := os.MkdirAll(filepath.Dir(t.path), 0o755); err != nil {
		return -1, err
	}
	// O_EXCL: what another one puts there meanwhile is looked at before it is
	// opened.
	fd, err = openRetry(t.path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil && err != unix.EEXIST {
		return -1, err
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	return openRetry(t.path, flags, 0)
}

func openRetry(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (k targetKind) String() string {
	switch k {
	case fifoKind:
		return "FIFO"
	case fileKind:
		return "regular file"
	default:
		return "FIFO or regular file"
	}
}

func modeName(kind uint32) string {
	switch kind {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFREG:
		return "regular file"
	default:
		return "device"
	}
}
