package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/attach"
)

// streams say where the standard streams of a process go.
type streams struct {
	detach, interactive, terminal bool
	null                          bool
	uri                           string // the outputs' destination, empty for FIFOs or a log
	fifoDir                       string
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
	if st.detach {
		st.interactive = false
	}
	return st, nil
}

// keepsLog says that the output goes to a file that `berth logs` reads.
func (st *streams) keepsLog() bool { return st.detach && !st.null && st.uri == "" }

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
	case st.detach && log == "":
		return paths{}, nil, nil
	case st.detach:
		u := logURI(log)
		return paths{stdout: u, stderr: u}, nil, nil
	}
	cfg := attach.Config{Parent: st.fifoDir, ID: id, Terminal: st.terminal, Stdout: a.Stdout, Stderr: a.Stderr}
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

// logURI names a log file in a request.
func logURI(file string) string { return (&url.URL{Scheme: "file", Path: file}).String() }

// The place of logs under a daemon that does not say where it keeps its files.
const defaultRoot = "/var/lib/berth"

// The plugin that says it: its exports have "root".
const runtimePluginFilter = "type==io.containerd.runtime.v2,id==task"

// logFile makes the log of a container in the background, empty, and returns
// its path. The shim writes it; nobody else stands in the way.
// A container that exists keeps what its earlier runs wrote.
func (s *session) logFile(ctx context.Context, id string, exists bool) (string, error) {
	root, err := s.daemonRoot(ctx)
	if err != nil {
		return "", err
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
	if exists && errors.Is(err, fs.ErrExist) {
		return name, nil
	}
	if errors.Is(err, fs.ErrExist) {
		if _, getErr := s.client.ContainerService().Get(ctx, id); getErr == nil {
			return "", s.taken(ctx, id)
		}
		// Its container went without berth.
		f, err = os.OpenFile(name, os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("log: %w", err)
	}
	return name, f.Close()
}

// daemonRoot is where the daemon keeps its files.
func (s *session) daemonRoot(ctx context.Context) (string, error) {
	answer, err := s.client.IntrospectionService().Plugins(ctx, runtimePluginFilter)
	if err != nil {
		return "", fmt.Errorf("ask the daemon for its directory: %w", err)
	}
	for _, p := range answer.Plugins {
		if dir := p.Exports["root"]; filepath.IsAbs(dir) {
			return dir, nil
		}
	}
	return defaultRoot, nil
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
