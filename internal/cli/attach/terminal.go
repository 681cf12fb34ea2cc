package attach

import (
	"fmt"
	"os"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Terminal is the user's terminal, in raw mode where its input is attached.
type Terminal struct {
	con console.Console
}

// OpenTerminal finds the terminal behind stdin or stdout. With input, stdin
// must be a terminal, and it is set to raw mode until Restore: keys such as
// Ctrl-C go to the container as bytes. It returns nil where the user has no
// terminal and needs none.
func OpenTerminal(stdin, stdout *os.File, input bool) (*Terminal, error) {
	if input {
		con, err := console.ConsoleFromFile(stdin)
		if err != nil {
			return nil, fmt.Errorf("standard input is not a terminal (leave out --tty, or --interactive)")
		}
		if err := con.SetRaw(); err != nil {
			return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
		}
		return &Terminal{con: con}, nil
	}
	for _, f := range []*os.File{stdout, stdin} {
		if con, err := console.ConsoleFromFile(f); err == nil {
			return &Terminal{con: con}, nil
		}
	}
	return nil, nil
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

// Restore gives the terminal its modes back. Nil-safe and idempotent.
func (t *Terminal) Restore() {
	if t != nil {
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
