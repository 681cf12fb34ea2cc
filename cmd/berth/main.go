// Command berth runs and manages containers. See `berth --help`.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/berthd/berth/internal/cli"
)

func main() {
	// A command lives for milliseconds: collecting its little garbage is a
	// tenth of its CPU time.
	debug.SetGCPercent(400)
	app := &cli.App{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(app.Run(context.Background(), os.Args))
}
