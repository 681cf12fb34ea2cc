package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/attach"
	"github.com/berthd/berth/internal/cli/runspec"
	"github.com/berthd/berth/internal/logfile"
)

// streams say where the standard streams of a process go.
type streams struct {
	detach, interactive, terminal bool
	null                          bool
	uri                           string // the outputs' destination, empty for FIFOs or a log
	fifoDir                       string
	detachKeys                    []byte
}

// newStreams reads the flags of run, start and exec.
func newStreams(cmd *cli.Command) (*streams, error) {
	st := &streams{
		detach: cmd.Bool("detach"), interactive: cmd.Bool("interactive"), terminal: cmd.Bool("tty"),
		null: cmd.Bool("null-io"), uri: cmd.String("log-uri"), fifoDir: cmd.String("fifo-dir"),
	}
	switch {
	case st.null && (st.terminal || st.interactive || st.uri != ""):
		return nil, usageError("--null-io excludes --tty, --interactive and --log-uri")
	case st.uri != "" && st.interactive:
		return nil, usageError("--log-uri excludes --interactive")
	case st.detach && st.interactive && !st.terminal:
		return nil, usageError("--detach excludes --interactive: nobody is there to type")
	}
	if st.uri != "" {
		u, err := url.Parse(st.uri)
		if err != nil || u.Scheme == "" || !filepath.IsAbs(u.Path) {
			return nil, usageError("--log-uri %q: use a URI like file:///var/log/x.log", st.uri)
		}
	}
	if st.terminal && st.interactive {
		var err error
		if st.detachKeys, err = attach.ParseKeys(cmd.String("detach-keys")); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// readLogDriver reads docker's --log-driver and --log-opt; nil for the default.
func (st *streams) readLogDriver(cmd *cli.Command) (*logfile.Config, error) {
	driver, opts := cmd.String("log-driver"), cmd.StringSlice("log-opt")
	switch {
	case driver == "" && len(opts) == 0:
		return nil, nil
	case !st.keepsLog():
		return nil, usageError("--log-driver and --log-opt are for the log of --detach (see --log-uri for other places)")
	case driver == "none" && len(opts) == 0:
		st.null = true
		return nil, nil
	case driver != "" && driver != "json-file":
		return nil, usageError("--log-driver %q: use json-file, or none without --log-opt (see --log-uri for logging programs)", driver)
	}
	c := &logfile.Config{MaxSize: logSize, MaxFiles: logFiles}
	for _, o := range opts {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "max-size":
			if c.MaxSize, err = runspec.ParseBytes(value); err == nil && c.MaxSize < 4<<10 {
				err = errors.New("use 4k or more")
			}
		case "max-file":
			if c.MaxFiles, err = strconv.Atoi(value); err != nil || c.MaxFiles < 1 || c.MaxFiles > 1000 {
				err = errors.New("use a number from 1 to 1000")
			}
		default:
			err = errors.New("use max-size and max-file")
		}
		if err != nil {
			return nil, usageError("--log-opt %q: %w", o, err)
		}
	}
	return c, nil
}

// keepsLog says that the output goes to a file that `berth logs` reads.
func (st *streams) keepsLog() bool { return st.detach && !st.null && st.uri == "" && !st.interactive }

// attached says that the outputs come to this process.
func (st *streams) attached() bool { return !st.detach && !st.null && st.uri == "" }

// openTerminal prepares the user's terminal for a process that has one; nil
// where there is none to prepare.
func (st *streams) openTerminal(a *App) (*attach.Terminal, error) {
	if !st.terminal || !st.attached() {
		return nil, nil
	}
	return attach.OpenTerminal(a.Stdin, a.Stdout, st.interactive)
}

// paths are the three streams as a request names them.
type paths struct{ stdin, stdout, stderr string }

// open makes what the streams need. The IO is nil unless they are attached.
func (st *streams) open(a *App, id, log string) (paths, *attach.IO, error) {
	switch {
	case st.null:
		return paths{}, nil, nil
	case st.uri != "":
		return paths{stdout: st.uri, stderr: st.uri}, nil, nil
	case st.detach && st.interactive: // for `berth attach`
	case st.detach && log == "":
		return paths{}, nil, nil
	case st.detach:
		u := logURI(log)
		return paths{stdout: u, stderr: u}, nil, nil
	}
	cfg := attach.Config{Parent: st.fifoDir, ID: id, Terminal: st.terminal, Stdout: a.Stdout, Stderr: a.Stderr, DetachKeys: st.detachKeys}
	if st.interactive {
		cfg.Stdin = a.Stdin
	}
	io, err := attach.New(cfg)
	if err != nil {
		return paths{}, nil, err
	}
	var p paths
	p.stdin, p.stdout, p.stderr = io.Paths()
	return p, io, nil
}

// How large a log may become that nobody gave a size: 50 MiB.
const (
	logSize  = 10 << 20
	logFiles = 5
)

// A log is noted, in a container's record, as the URI of a log of JSON lines or
// as the path of a file with the bare output.

func isJSONLog(log string) bool { return strings.HasPrefix(log, logfile.Scheme+":") }

// logURI is a log as a request names it.
func logURI(log string) string {
	if isJSONLog(log) {
		return log
	}
	return (&url.URL{Scheme: "file", Path: log}).String()
}

// logPath is the file of a log; of one that rotates, the newest.
func logPath(log string) string {
	if isJSONLog(log) {
		if cfg, err := logfile.Parse(log); err == nil {
			return cfg.Path
		}
	}
	return log
}

// removeLog removes a log that newLog made, and the directory of its namespace
// when that was the last; the empty name is none.
func removeLog(log string) {
	if log == "" {
		return
	}
	path := logPath(log)
	if err := logfile.Remove(path); err == nil {
		_ = os.Remove(filepath.Dir(path))
	}
}

// The place of logs under a daemon that does not say where it keeps its files.
const defaultRoot = "/var/lib/berth"

// The plugin that says it: its exports have "root".
const runtimePluginFilter = "type==io.containerd.runtime.v2,id==task"

// newLog makes the log of a container in the background, empty. The shim writes
// it; nobody else stands in the way. It has times and rotates where the daemon and the
// runtime know that. A container that exists keeps what its earlier runs wrote.
func (s *session) newLog(ctx context.Context, id, runtime string, want *logfile.Config, exists bool) (string, error) {
	exports, root, err := s.daemonExports(ctx)
	if err != nil {
		return "", err
	}
	// Other makers' shims do not know it.
	rotates := slices.Contains(strings.Split(exports["log-uri-schemes"], ","), logfile.Scheme) &&
		slices.Contains([]string{"", defaults.DefaultRuntime, "io.containerd.berth.v2"}, runtime)
	if want == nil {
		want = &logfile.Config{MaxSize: logSize, MaxFiles: logFiles}
	} else if !rotates {
		return "", errors.New("--log-driver json-file: the daemon or the runtime has no such log (leave it out)")
	}
	name := filepath.Join(root, "logs", s.namespace, id+".log")
	if err := os.MkdirAll(filepath.Join(root, "logs"), 0o700); err != nil {
		return "", fmt.Errorf("directory of the logs: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return "", fmt.Errorf("directory of the logs: %w", err)
	}
	// Exclusive: the log of a container that has the name is not to be lost.
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	log := name
	if rotates {
		log = logfile.Config{Path: name, MaxSize: want.MaxSize, MaxFiles: want.MaxFiles}.URI()
	}
	if exists && errors.Is(err, fs.ErrExist) {
		return log, nil
	}
	if errors.Is(err, fs.ErrExist) {
		if _, getErr := s.client.ContainerService().Get(ctx, id); getErr == nil {
			return "", s.taken(ctx, id)
		}
		// Its container went without berth.
		if err = logfile.Remove(name); err == nil {
			f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
		}
	}
	if err != nil {
		return "", fmt.Errorf("log: %w", err)
	}
	return log, f.Close()
}

// daemonExports is what the daemon says of its runtime, and where it keeps its
// files.
func (s *session) daemonExports(ctx context.Context) (exports map[string]string, root string, err error) {
	answer, err := s.client.IntrospectionService().Plugins(ctx, runtimePluginFilter)
	if err != nil {
		return nil, "", fmt.Errorf("ask the daemon for its directory: %w", err)
	}
	for _, p := range answer.Plugins {
		exports = p.Exports
	}
	if root = exports["root"]; !filepath.IsAbs(root) {
		root = defaultRoot
	}
	return exports, root, nil
}

// replaceFile writes a file so that a reader sees all of it or nothing.
func replaceFile(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
