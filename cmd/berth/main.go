// Command berth runs and manages containers. See `berth --help`.
package main

import (
	"context"
	"os"

	"github.com/berthd/berth/internal/cli"
)

func main() {
	app := &cli.App{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	os.Exit(app.Run(context.Background(), os.Args))
}
