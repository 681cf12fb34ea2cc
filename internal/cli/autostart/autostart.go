// Package autostart starts the daemon where none runs.
package autostart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Config says which daemon to start. The zero value of a field stands for the
// daemon's own default.
type Config struct {
	// Address is the socket that the daemon will serve.
	Address string
	// Binary is the daemon; by default berthd beside this program, else in PATH.
	Binary string
	// Args are given to the daemon.
	Args []string
	// LogFile gets what the daemon prints; /var/log/berth/berthd.log.
	LogFile string
	// Patience is how long the daemon may take until it serves; 15 s.
	Patience time.Duration
}

// lockName is the file in the socket's directory that serialises starts.
const lockName = "start.lock"

// Start returns when a daemon serves the address: the one that it started, or
// one that another command started meanwhile. The daemon lives on in a session
// of its own.
func Start(ctx context.Context, cfg Config) error {
	if cfg.LogFile == "" {
		cfg.LogFile = "/var/log/berth/berthd.log"
	}
	if cfg.Patience == 0 {
		cfg.Patience = 15 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Patience)
	defer cancel()
	unlock, err := lock(ctx, filepath.Dir(cfg.Address))
	if err != nil {
		return fmt.Errorf("daemon: cannot start it: %w", err)
	}
	defer unlock()
	if serves(cfg.Address) {
		return nil
	}
	binary, err := find(cfg.Binary)
	if err != nil {
		return err
	}
	log, err := openLog(cfg.LogFile)
	if err != nil {
		return fmt.Errorf("daemon: cannot start it: %w", err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("daemon: log %s: %w", cfg.LogFile, err)
	}
	cmd := exec.Command(binary, cfg.Args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("daemon: start %s: %w", binary, err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }() // ends with the daemon, or with this program
	return await(ctx, cfg, cmd.Process.Pid, died, from)
}

// await polls: a socket says nothing when it begins to be served.
// A daemon that is slow is left to go on: to end it in the middle of a
// recovery would make it slower still.
func await(ctx context.Context, cfg Config, pid int, died <-chan error, from int64) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if serves(cfg.Address) {
				return nil
			}
		case err := <-died:
			if err == nil {
				err = errors.New("it ended at once")
			}
			return fmt.Errorf("daemon: berthd did not start (%w): %s (log: %s)", err, tail(cfg.LogFile, from), cfg.LogFile)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("daemon: berthd (pid %d) serves nothing at %s after %v, and goes on trying: %s (log: %s)",
					pid, cfg.Address, cfg.Patience, tail(cfg.LogFile, from), cfg.LogFile)
			}
			return ctx.Err()
		}
	}
}

func serves(address string) bool {
	c, err := net.DialTimeout("unix", address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// lock takes the lock of the starts. The daemon widens the directory's mode to
// its own when it comes up.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w (run as root)", err)
		}
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another command is starting it and holds %s: %w", f.Name(), ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// find looks for the daemon beside this program, so that what was installed
// together runs together.
func find(binary string) (string, error) {
	if binary != "" {
		return binary, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "berthd")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	found, err := exec.LookPath("berthd")
	if err != nil {
		return "", errors.New("daemon: berthd is neither beside berth nor in PATH (install it, or give the --address of one that runs)")
	}
	return found, nil
}

func openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o640)
}

// tail gives the last lines that the daemon wrote, as one.
func tail(name string, from int64) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 2048
	if st, err := f.Stat(); err == nil && st.Size()-from > most {
		from = st.Size() - most
	}
	data, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	text := strings.TrimSpace(string(bytes.Join(lines, []byte(" | "))))
	if text == "" {
		return "it printed nothing"
	}
	return text
}
