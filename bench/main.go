// Bench measures Berth beside stock containerd: both daemons run at the same
// time on this machine, with the same OCI runtime and the same image, and take
// turns, so that what else the machine does falls on both alike. The ratios
// count, not the milliseconds.
//
// usage: go run ./bench [-n ROUNDS] [-only ROW,…] [-json FILE]   (as root, after make build peers)
//
// Rows:
//
//	run       run --rm IMAGE true, from the start of the client to its end
//	exec      exec CONTAINER true, the same way
//	api       create, start, wait and delete of a task by containerd's Go client
//	parallel  containers a second, 100 started 8 at a time by that client
//	restart   the daemon killed and started again, until it lists N tasks
//	import    an image of 48 MiB in four layers, imported and unpacked
//	stdout    bytes a second from a container through its client
//	memory    PSS of all engine processes with N idle containers
//	calls     programs started and files synced by the engine in one run
//	startup   the client's own start
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	rounds     int
	containers int
	settle     time.Duration
	only       []string
	engines    []string
	json       string
	source     string // the source tree, which has bin and out/peers/bin
	runc       string
}

var rows = []string{"run", "exec", "api", "parallel", "restart", "import", "stdout", "memory", "calls", "startup"}

func main() {
	opts, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, opts)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var opts options
	var only, engines string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&opts.rounds, "n", 20, "rounds of each timed row")
	flags.IntVar(&opts.containers, "containers", 50, "idle containers for the rows memory and restart")
	flags.DurationVar(&opts.settle, "settle", 10*time.Second, "how long the engine idles before its memory is read")
	flags.StringVar(&only, "only", "", "rows to measure, with commas: "+strings.Join(rows, ","))
	flags.StringVar(&engines, "engines", "stock,berth", "daemons to measure")
	flags.StringVar(&opts.json, "json", "", "write the figures to this file")
	flags.StringVar(&opts.source, "source", ".", "source tree with bin/ and out/peers/bin/")
	flags.StringVar(&opts.runc, "runc", "", "OCI runtime (default: the one in out/peers/bin)")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	if opts.rounds < 1 || opts.containers < 1 {
		return opts, errors.New("-n and -containers: want at least 1")
	}
	opts.only, opts.engines = rows, strings.Split(engines, ",")
	if only != "" {
		opts.only = strings.Split(only, ",")
	}
	for _, row := range opts.only {
		if !slices.Contains(rows, row) {
			return opts, fmt.Errorf("-only %s: there is no such row, want %s", row, strings.Join(rows, ", "))
		}
	}
	for _, name := range opts.engines {
		if name != stock && name != berth {
			return opts, fmt.Errorf("-engines %s: want %s or %s", name, stock, berth)
		}
	}
	var err error
	if opts.source, err = filepath.Abs(opts.source); err != nil {
		return opts, err
	}
	if opts.runc == "" {
		opts.runc = filepath.Join(opts.source, "out", "peers", "bin", "runc")
	}
	return opts, nil
}

// run starts the daemons, measures the rows and prints the report.
func run(ctx context.Context, opts options) (err error) {
	l, err := openLab(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	report := newReport(ctx, l)
	measure := map[string]func(*lab, context.Context) ([]figure, error){
		"run": (*lab).measureRun, "exec": (*lab).measureExec, "api": (*lab).measureAPI, "parallel": (*lab).measureParallel,
		"restart": (*lab).measureRestart, "import": (*lab).measureImport, "stdout": (*lab).measureStdout,
		"memory": (*lab).measureMemory, "calls": (*lab).measureCalls, "startup": (*lab).measureStartup,
	}
	for _, row := range opts.only {
		fmt.Fprintf(os.Stderr, "bench: %s\n", row)
		measured, err := measure[row](l, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", row, err)
		}
		report.Figures = append(report.Figures, measured...)
	}
	if err := report.print(os.Stdout); err != nil {
		return err
	}
	if opts.json == "" {
		return nil
	}
	return report.write(opts.json)
}
