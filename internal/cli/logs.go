package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/logfile"
)

func (a *App) logsCommand() *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "print what a container in the background has written",
		ArgsUsage: "CONTAINER",
		Category:  "Containers",
		Description: `The log is a file that the container's shim writes: it goes on whatever becomes
of the daemon. What the container wrote to its standard error comes there again.

Examples:
  berth logs web
  berth logs -f --tail 20 web
  berth logs -t --since 10m web
  berth logs --since 2026-11-22T08:00:00Z --until 2026-11-22T09:00:00Z web`,
		Flags: []cli.Flag{
			yes("follow", "go on until the container ends", "f"),
			&cli.StringFlag{Name: "tail", Aliases: []string{"n"}, Value: "all", Usage: "begin with the last `N` lines"},
			str("since", "only what was written at this `TIME` or later (2026-11-22T08:00:00Z, seconds since 1970, or 10m for ten minutes ago)"),
			str("until", "only what was written at this `TIME` or before"),
			yes("timestamps", "begin each line with its time", "t"),
			yes("path", "print the log's file name alone"),
		},
		UseShortOptionHandling: true,
		Action:                 a.logs,
	}
}

// logOptions are the flags of logs.
type logOptions struct {
	follow, timestamps bool
	filter             logfile.Filter
}

func readLogOptions(cmd *cli.Command, now time.Time) (o logOptions, err error) {
	o = logOptions{follow: cmd.Bool("follow"), timestamps: cmd.Bool("timestamps"), filter: logfile.Filter{Tail: -1}}
	if s := cmd.String("tail"); s != "all" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return o, usageError("--tail %q: use a number, or all", s)
		}
		o.filter.Tail = n
	}
	if o.filter.Since, err = parseMoment("since", cmd.String("since"), now); err != nil {
		return o, err
	}
	if o.filter.Until, err = parseMoment("until", cmd.String("until"), now); err != nil {
		return o, err
	}
	if o.follow && !o.filter.Until.IsZero() {
		return o, usageError("--follow excludes --until")
	}
	return o, nil
}

// parseMoment reads a time, or how long ago it was; empty is the zero time.
func parseMoment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil && n >= 0 && n < 1<<40 {
		return time.Unix(int64(n), int64((n-float64(int64(n)))*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usageError("--%s %q: use a time like 2026-11-22T08:00:00Z, seconds since 1970, or 10m for ten minutes ago", flag, s)
}

func (a *App) logs(ctx context.Context, cmd *cli.Command) error {
	if cmd.NArg() != 1 {
		return usageError("name one container (berth logs CONTAINER)")
	}
	opts, err := readLogOptions(cmd, time.Now())
	if err != nil {
		return err
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
			s.printf("%s\n", logPath(r.Log))
			return nil
		}
		l, err := a.openLog(r.Log, opts)
		if err != nil {
			return fmt.Errorf("container %q: log: %w", id, err)
		}
		defer l.close()
		if !opts.follow {
			return l.print()
		}
		_, err = s.followLog(ctx, id, logPath(r.Log), l)
		if errdefs.IsNotFound(err) {
			err = nil // it has ended, and its task is deleted
		}
		return err
	})
}

// openedLog is a log that is being printed.
type openedLog interface {
	// print prints what is there and was not printed.
	print() error
	close()
}

// openLog opens a log by what a record says of it.
func (a *App) openLog(log string, o logOptions) (openedLog, error) {
	if !isJSONLog(log) {
		if o.timestamps || !o.filter.Since.IsZero() || !o.filter.Until.IsZero() {
			return nil, usageError("%s has no times: it is the bare output (--timestamps, --since and --until need a json-file log)", log)
		}
		f, err := os.Open(log)
		if err == nil && o.filter.Tail >= 0 {
			if err = seekLines(f, o.filter.Tail); err != nil {
				f.Close()
			}
		}
		return &rawLog{f, a.Stdout}, err
	}
	r, err := logfile.Read(logPath(log), o.filter)
	return &jsonLog{app: a, r: r, timestamps: o.timestamps, begun: map[string]bool{}}, err
}

type rawLog struct {
	f   *os.File
	out io.Writer
}

func (l *rawLog) print() error {
	_, err := io.Copy(l.out, l.f)
	return err
}

func (l *rawLog) close() { l.f.Close() }

// jsonLog puts each stream where the container wrote it.
type jsonLog struct {
	app        *App
	r          *logfile.Reader
	timestamps bool
	begun      map[string]bool // streams in the middle of a line
	buf        bytes.Buffer
}

func (l *jsonLog) print() error {
	var to io.Writer // of what is in the buffer
	flush := func() error {
		if l.buf.Len() == 0 {
			return nil
		}
		_, err := l.buf.WriteTo(to)
		return err
	}
	for {
		rec, err := l.r.Next()
		if err == io.EOF {
			return flush()
		}
		if err != nil {
			return err
		}
		out := l.app.Stderr
		if rec.Stream == "stdout" {
			out = l.app.Stdout
		}
		if out != to || l.buf.Len() > 32<<10 {
			if err := flush(); err != nil {
				return err
			}
			to = out
		}
		l.line(rec)
	}
}

// line formats a record, which may be a part of a line.
func (l *jsonLog) line(rec logfile.Record) {
	if !l.begun[rec.Stream] {
		if l.timestamps {
			l.buf.WriteString(rec.Time.UTC().Format("2006-01-02T15:04:05.000000000Z") + " ")
		}
		if rec.Stream == logfile.Lost {
			l.buf.WriteString("berth: ")
		}
	}
	l.begun[rec.Stream] = rec.Text == "" || rec.Text[len(rec.Text)-1] != '\n'
	l.buf.WriteString(rec.Text)
}

func (l *jsonLog) close() {
	if n := l.r.Skipped(); n > 0 {
		l.app.warnf("logs: %d lines of the log are damaged and left out", n)
	}
	l.r.Close()
}

// followLog prints what is there and what comes, until the container ends, and
// returns how.
func (s *session) followLog(ctx context.Context, id, path string, l openedLog) (exitStatus, error) {
	changes, err := watchFile(path)
	if err != nil {
		return exitStatus{}, fmt.Errorf("watch log %s: %w", path, err)
	}
	defer changes.Close()
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan exitAnswer, 1)
	go func() {
		status, err := s.waitExit(waitCtx, id, "")
		ended <- exitAnswer{status, err}
	}()
	wrote := make(chan struct{}, 1)
	go reportChanges(changes, filepath.Base(path), wrote) // ends with changes
	for {
		if err := l.print(); err != nil {
			return exitStatus{}, err
		}
		select {
		case <-wrote:
		case <-ctx.Done():
			return exitStatus{}, ctx.Err()
		case a := <-ended:
			if err := lastLines(l, wrote); err != nil {
				return exitStatus{}, err
			}
			if a.err != nil {
				a.err = fmt.Errorf("container %q: wait: %w", id, a.err)
			}
			return a.exitStatus, a.err
		}
	}
}

// logQuiet is how long a log may be silent after the container's end before it
// counts as complete.
const logQuiet = time.Second

// lastLines prints what a shim still writes after the exit.
func lastLines(l openedLog, wrote <-chan struct{}) error {
	for {
		if err := l.print(); err != nil {
			return err
		}
		select {
		case <-wrote:
		case <-time.After(logQuiet):
			return l.print()
		}
	}
}

// watchFile returns an inotify descriptor that becomes readable with every
// write to the file, and when another takes its place.
func watchFile(name string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// The directory: a watch of the file would go along when it is renamed.
	dir := filepath.Dir(name)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	return f, nil
}

// reportChanges puts a value into wrote, if it has room, for each change of
// the file with that name.
func reportChanges(changes io.Reader, name string, wrote chan<- struct{}) {
	buf := make([]byte, 4096)
	for {
		n, err := changes.Read(buf)
		if err != nil {
			return
		}
		// Names stand in the events as they are, with NUL bytes behind them; an
		// event without a name says that some were lost.
		if n > unix.SizeofInotifyEvent && !bytes.Contains(buf[:n], []byte(name)) {
			continue
		}
		select {
		case wrote <- struct{}{}:
		default:
		}
	}
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
