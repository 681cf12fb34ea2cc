// Package shim is Berth's shim as a function, for a program that has the engine
// inside and no second file beside it:
//
//	func main() {
//		if shim.Called() {
//			shim.Main()
//		}
//		path, err := shim.Link(state) // for engine.Config.ShimBinary
//		…
//
// The shim of such a program has its size: where memory counts, install
// containerd-shim-berth-v2, which is this package alone.
package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/api/types"

	"github.com/berthd/berth/internal/shim"
	"github.com/berthd/berth/internal/version"
)

// Name of the shim's binary.
const Name = "containerd-shim-berth-v2"

const (
	runtimeName = "io.containerd.berth.v2"
	usage       = "usage: containerd-shim-berth-v2 [flags] start|delete|guard|serve, or -v, or -info"
)

// Called says whether this process was started as the shim, by its name.
func Called() bool { return filepath.Base(os.Args[0]) == Name }

// Link makes a link in dir, which exists, by which this program is the shim, and
// returns its absolute path. One that is there is replaced.
func Link(dir string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path, err := filepath.Abs(filepath.Join(dir, Name))
	if err != nil {
		return "", err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.Symlink(self, fresh); err != nil {
		return "", err
	}
	return path, os.Rename(fresh, path)
}

// Main is the shim: it reads the process's arguments, and ends the process. A
// daemon starts it; people do not. Under berthd the action is "guard", which
// stays as the ancestor of the group and starts "serve". Any other containerd
// uses "start" and "delete".
func Main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", Name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type flags struct {
	shim.Args
	version, info       bool
	socket, debugSocket string
}

func parse(args []string) (flags, string, error) {
	var f flags
	set := flag.NewFlagSet(Name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.BoolVar(&f.Debug, "debug", false, "log more")
	set.BoolVar(&f.version, "v", false, "print the version and exit")
	set.BoolVar(&f.version, "version", false, "print the version and exit")
	set.BoolVar(&f.info, "info", false, "print a RuntimeInfo message and exit; options are read from standard input")
	set.StringVar(&f.Namespace, "namespace", "", "namespace of the containers")
	set.StringVar(&f.ID, "id", "", "id of the container, or of the group")
	set.StringVar(&f.Address, "address", "", "gRPC address of the daemon")
	set.StringVar(&f.PublishBinary, "publish-binary", "", "binary that publishes events; events go over ttrpc instead")
	set.StringVar(&f.Bundle, "bundle", "", "bundle of the container")
	set.StringVar(&f.socket, "socket", "", "not used: the socket is inherited")
	set.StringVar(&f.debugSocket, "debug-socket", "", "not used")
	if err := set.Parse(args); err != nil {
		return f, "", fmt.Errorf("%w (%s)", err, usage)
	}
	return f, set.Arg(0), nil
}

func run(args []string) error {
	f, action, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		_, err := fmt.Println(usage)
		return err
	}
	if err != nil {
		return err
	}
	ctx := context.Background()
	switch {
	case f.version:
		fmt.Printf("containerd-shim-berth-v2:\n  Version:  %s\n  Revision: %s\n  Go version: %s\n", version.Get().Version, version.Get().Revision, runtime.Version())
		return nil
	case f.info:
		return shim.Info(ctx, runtimeName, &types.RuntimeVersion{Version: version.Get().Version, Revision: version.Get().Revision}, os.Stdin, os.Stdout)
	case f.Namespace == "":
		return errors.New("a namespace is needed (-namespace)")
	case f.ID == "":
		return errors.New("an id is needed (-id)")
	}
	f.Log = logger(f, action)
	if err := shim.ResetSignals(); err != nil {
		return err
	}
	switch action {
	case "guard":
		return shim.RunGuard(f.Args, os.Stdin, os.Stdout)
	case "serve":
		return shim.RunServe(ctx, f.Args)
	case "start":
		return shim.Start(f.Args, os.Stdin, os.Stdout)
	case "delete":
		return shim.Delete(ctx, f.Args, os.Stdout)
	default:
		return fmt.Errorf("unknown action %q (start, delete, guard or serve)", action)
	}
}

// logger writes to standard error. Under berthd, which reads it, the daemon's own
// log gives the time and the group.
func logger(f flags, action string) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if f.Debug {
		o.Level = slog.LevelDebug
	}
	if action != "guard" && os.Getenv(shim.EnvGroupDir) == "" {
		return slog.New(slog.NewTextHandler(os.Stderr, o)).With("group", f.ID, "pid", os.Getpid())
	}
	o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)).With("process", action, "pid", os.Getpid())
}
