package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// The exit codes of run, create, start and exec are docker's: the container's
// own, or one of these. Every other verb fails with 1.
const (
	codeEngine   = 125 // the engine, or the command line
	codeInvoke   = 126 // the program cannot be run
	codeNotFound = 127 // the program is not there
)

// exitError ends the command with a code. Without err nothing is printed: the
// code is a container's.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is a command line that cannot be meant.
func usageError(format string, args ...any) error {
	return fmt.Errorf(format, args...)
}

// report prints an error as one line, and gives the exit code. Debug prints the
// errors too that it wraps, a line each with its type.
func (a *App) report(verb string, err error, debug bool) int {
	if err == nil {
		return 0
	}
	if a.readerGone(err) {
		return 0
	}
	var exit *exitError
	code := 1
	switch {
	case errors.As(err, &exit):
		code = exit.code
		if exit.err == nil {
			return code
		}
	case runsProcess(verb):
		code = invokeCode(err)
	}
	text := oneLine(err)
	if verb != "" {
		text = verb + ": " + text
	}
	a.warnf("%s", text)
	if debug {
		a.printChain(err, 1)
	}
	return code
}

// readerGone says that a command ended because nobody reads its output on, as
// with `| head`, which is no failure.
func (a *App) readerGone(err error) bool {
	var write *fs.PathError
	return errors.As(err, &write) && errors.Is(write, unix.EPIPE) &&
		(write.Path == a.Stdout.Name() || write.Path == a.Stderr.Name())
}

// printChain prints an error and what it wraps, from the outside inwards.
func (a *App) printChain(err error, depth int) {
	if err == nil || depth > 50 {
		return
	}
	a.warnf("%*s%T: %s", 2*depth, "", err, oneLine(err))
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		a.printChain(e.Unwrap(), depth+1)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			a.printChain(inner, depth+1)
		}
	}
}

func runsProcess(verb string) bool {
	switch verb {
	case "run", "create", "start", "exec":
		return true
	}
	return false
}

// oneLine is the error's text without the line breaks that runtimes and
// registries put in.
func oneLine(err error) string {
	if errors.Is(err, context.DeadlineExceeded) && strings.HasSuffix(err.Error(), "context deadline exceeded") {
		return strings.TrimSuffix(err.Error(), "context deadline exceeded") + "no answer in time (see --timeout)"
	}
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, " ")
}

// invokeCode tells a program that cannot be run from an engine that failed.
// Runtimes say which only in words.
func invokeCode(err error) int {
	text := strings.ToLower(err.Error())
	if !strings.Contains(text, "oci runtime") && !strings.Contains(text, "exec") {
		return codeEngine
	}
	// What runc says of the program itself follows this.
	if _, after, ok := strings.Cut(text, "unable to start container process:"); ok {
		text = strings.TrimSpace(after)
	}
	program := strings.HasPrefix(text, "exec") || strings.Contains(text, ": exec: ") || strings.Contains(text, "executable")
	if !program {
		return codeEngine
	}
	for _, s := range []string{"executable file not found", "no such file or directory"} {
		if strings.Contains(text, s) {
			return codeNotFound
		}
	}
	if strings.Contains(text, "executable file") && strings.Contains(text, "not found") {
		return codeNotFound
	}
	for _, s := range []string{"permission denied", "is a directory", "exec format error"} {
		if strings.Contains(text, s) {
			return codeInvoke
		}
	}
	return codeEngine
}

// native gives an error of a bare gRPC call its errdefs class.
func native(err error) error {
	if err == nil {
		return nil
	}
	return errgrpc.ToNative(err)
}

// classed is an error with words of our own and the class of another's.
type classed struct {
	text  string
	class error
}

func (e *classed) Error() string { return e.text }
func (e *classed) Unwrap() error { return e.class }

// say makes an error of a class; the class's own words are not in it.
func say(class error, format string, args ...any) error {
	return &classed{text: fmt.Sprintf(format, args...), class: class}
}

// containerError names the container of a failed call.
func containerError(id string, err error) error {
	if errdefs.IsNotFound(err) {
		return say(errdefs.ErrNotFound, "container %q: not found (berth ps -a lists them)", id)
	}
	return fmt.Errorf("container %q: %w", id, err)
}
