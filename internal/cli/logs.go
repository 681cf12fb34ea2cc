package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

func (a *App) logsCommand() *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "print what a container in the background has written",
		ArgsUsage: "CONTAINER",
		Category:  "Containers",
		Description: `The log is a file that the container's shim writes: it goes on whatever becomes
of the daemon.

Examples:
  berth logs web
  berth logs -f --tail 20 web`,
		Flags: []cli.Flag{
			yes("follow", "go on until the container ends", "f"),
			&cli.StringFlag{Name: "tail", Value: "all", Usage: "begin with the last `N` lines"},
			yes("path", "print the log's file name alone"),
		},
		UseShortOptionHandling: true,
		Action:                 a.logs,
	}
}

func (a *App) logs(ctx context.Context, cmd *cli.Command) error {
	if cmd.NArg() != 1 {
		return usageError("name one container (berth logs CONTAINER)")
	}
	lines := int64(-1)
	if s := cmd.String("tail"); s != "all" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return usageError("--tail %q: use a number, or all", s)
		}
		lines = n
	}
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		id := cmd.Args().First()
		c, err := s.client.ContainerService().Get(ctx, id)
		if err != nil {
			return containerError(id, err)
		}
		r, err := readRecord(&c)
		if err != nil {
			return err
		}
		if r.Log == "" {
			return say(errdefs.ErrNotFound, "container %q: it has no log (only a container started with --detach has one)", id)
		}
		if cmd.Bool("path") {
			s.printf("%s\n", r.Log)
			return nil
		}
		f, err := os.Open(r.Log)
		if err != nil {
			return fmt.Errorf("container %q: log: %w", id, err)
		}
		defer f.Close()
		if lines >= 0 {
			if err := seekLines(f, lines); err != nil {
				return fmt.Errorf("log %s: %w", r.Log, err)
			}
		}
		if !cmd.Bool("follow") {
			return copyLog(s.Stdout, f)
		}
		return s.followLog(ctx, id, f)
	})
}

// copyLog prints from where the file stands to its end. A reader that went
// away is no failure.
func copyLog(w io.Writer, f *os.File) error {
	_, err := io.Copy(w, f)
	if errors.Is(err, unix.EPIPE) {
		return errReaderGone
	}
	return err
}

// errReaderGone ends a command whose output nobody reads, without words.
var errReaderGone error = &exitError{code: 0}

// followLog prints what is there and what comes, until the container ends.
func (s *session) followLog(ctx context.Context, id string, f *os.File) error {
	changes, err := watchFile(f.Name())
	if err != nil {
		return fmt.Errorf("watch log %s: %w", f.Name(), err)
	}
	defer changes.Close()
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := s.waitExit(waitCtx, id, "")
		ended <- err
	}()
	wrote := make(chan struct{}, 1)
	go func() { // ends with changes
		buf := make([]byte, 4096)
		for {
			if _, err := changes.Read(buf); err != nil {
				return
			}
			select {
			case wrote <- struct{}{}:
			default:
			}
		}
	}()
	for {
		if err := copyLog(s.Stdout, f); err != nil {
			return err
		}
		select {
		case <-wrote:
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			if err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("container %q: wait: %w", id, err)
			}
			return s.lastLines(f, wrote)
		}
	}
}

// lastLines prints what a shim still writes after the exit.
func (s *session) lastLines(f *os.File, wrote <-chan struct{}) error {
	for {
		if err := copyLog(s.Stdout, f); err != nil {
			return err
		}
		select {
		case <-wrote:
		case <-time.After(quietTime):
			return copyLog(s.Stdout, f)
		}
	}
}

// watchFile returns an inotify descriptor that becomes readable with every
// write to the file.
func watchFile(name string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, name, unix.IN_MODIFY); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "inotify_add_watch", Path: name, Err: err}
	}
	return f, nil
}

// seekLines moves to the beginning of the last n lines. It reads from the end,
// so that a large log costs no more than its tail.
func seekLines(f *os.File, n int64) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return err
	}
	buf := make([]byte, 32<<10)
	pos := end
	for pos > 0 {
		size := min(pos, int64(len(buf)))
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			// The line break at the very end ends the last line.
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if n--; n == 0 {
				_, err := f.Seek(pos+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// removeLog removes a log that logFile made, and the directory of its
// namespace when that was the last; the empty name is none.
func removeLog(name string) {
	if name == "" {
		return
	}
	if err := os.Remove(name); err == nil || errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(filepath.Dir(name))
	}
}
