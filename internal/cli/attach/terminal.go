package attach

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Terminal is the user's terminal.
type Terminal struct {
	con   console.Console
	input bool
}

// OpenTerminal finds the terminal behind stdin or stdout. With input, stdin
// must be a terminal. It returns nil where the user has no terminal and needs
// none.
func OpenTerminal(stdin, stdout *os.File, input bool) (*Terminal, error) {
	if input {
		con, err := console.ConsoleFromFile(stdin)
		if err != nil {
			return nil, errors.New("standard input is not a terminal (leave out --tty, or --interactive)")
		}
		return &Terminal{con: con, input: true}, nil
	}
	for _, f := range []*os.File{stdout, stdin} {
		if con, err := console.ConsoleFromFile(f); err == nil {
			return &Terminal{con: con}, nil
		}
	}
	return nil, nil
}

// Attached says that the terminal's keys are the process's.
func (t *Terminal) Attached() bool { return t != nil && t.input }

// Raw sets a terminal whose input is attached to raw mode until Restore: keys
// such as Ctrl-C go to the container as bytes. It does so again after another
// program changed the modes. Nil-safe.
func (t *Terminal) Raw() error {
	if !t.Attached() {
		return nil
	}
	if err := t.con.SetRaw(); err != nil {
		return fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	return nil
}

// Size is the terminal's size in characters, zero where there is none.
func (t *Terminal) Size() (width, height uint16) {
	if t == nil {
		return 0, 0
	}
	ws, err := t.con.Size()
	if err != nil {
		return 0, 0
	}
	return ws.Width, ws.Height
}

// Restore gives the terminal the modes back that it had when it was opened.
// Nil-safe and idempotent.
func (t *Terminal) Restore() {
	if t.Attached() {
		_ = t.con.Reset()
	}
}

// IsTerminal says whether a file is a terminal.
func IsTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
