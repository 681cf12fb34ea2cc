// Command containerd-shim-berth-v2 is Berth's shim: it runs the containers of
// a group through an OCI runtime. A daemon starts it; people do not.
//
// Under berthd the action is "guard", which stays as the ancestor of the group
// and starts "serve". Any other containerd uses "start" and "delete".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"

	"github.com/containerd/containerd/api/types"

	"github.com/berthd/berth/internal/shim"
	"github.com/berthd/berth/internal/version"
)

const (
	name  = "io.containerd.berth.v2"
	usage = "usage: containerd-shim-berth-v2 [flags] start|delete|guard|serve, or -v, or -info"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "containerd-shim-berth-v2: %v\n", err)
		os.Exit(1)
	}
}

type flags struct {
	shim.Args
	version, info       bool
	socket, debugSocket string
}

func parse(args []string) (flags, string, error) {
	var f flags
	set := flag.NewFlagSet("containerd-shim-berth-v2", flag.ContinueOnError)
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
		return shim.Info(ctx, name, &types.RuntimeVersion{Version: version.Get().Version, Revision: version.Get().Revision}, os.Stdin, os.Stdout)
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
