// Command berthd is Berth's daemon: the engine behind a socket. See wire.go for
// what it is made of.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	// Files and directories get the modes that are asked for, whoever started
	// the daemon.
	unix.Umask(0o022)
	command := newCommand()
	if filepath.Base(os.Args[0]) == containerdName {
		command = newContainerdCommand()
	}
	if err := command.Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, command.Name+":", oneLine(err))
		os.Exit(exitCode(err))
	}
}

// usageError is a mistake in flags or configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// oneLine is an error's text for people and scripts.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
