package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// callRuns is how many runs the calls are counted over.
const callRuns = 5

var (
	execCall = regexp.MustCompile(`\bexecve(at)?\(.*= 0$`)
	syncCall = regexp.MustCompile(`\b(fdatasync|fsync|syncfs|sync)\(`)
)

// measureCalls counts the programs that an engine starts for one `run --rm`,
// and the times that it makes the disk write. The client's own are left out.
func (l *lab) measureCalls(ctx context.Context) ([]figure, error) {
	var figures []figure
	for _, e := range l.engines {
		// The first run may start what stays.
		if err := e.ctr(ctx, "run", "--rm", image, "calls-warm", "true").run(); err != nil {
			return nil, err
		}
		execs, syncs, err := e.countCalls(ctx, func(n int) command {
			return e.ctr(ctx, "run", "--rm", image, fmt.Sprintf("calls%d", n), "true")
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		for what, count := range map[string]int{"execs a run": execs, "syncs a run": syncs} {
			figures = append(figures, figure{
				Row: what, Variant: "ctr on " + e.name, Value: float64(count) / callRuns, Samples: callRuns,
			})
		}
	}
	return figures, nil
}

// countCalls traces all processes of the engine while the runs go on.
func (e *engine) countCalls(ctx context.Context, run func(n int) command) (execs, syncs int, err error) {
	out := filepath.Join(e.lab.dir, e.name+".strace")
	args := []string{"-f", "-s", "64", "-e", "trace=execve,execveat,fdatasync,fsync,syncfs,sync", "-e", "signal=none", "-o", out}
	for _, pid := range e.processes() {
		args = append(args, "-p", fmt.Sprint(pid))
	}
	strace := e.lab.command(ctx, "strace", args...)
	stderr, err := strace.StderrPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := strace.Start(); err != nil {
		return 0, 0, err
	}
	defer strace.cancel()
	attached, drained := make(chan struct{}), make(chan struct{})
	go awaitAttached(stderr, attached, drained)
	select {
	case <-attached:
	case <-drained:
	case <-time.After(30 * time.Second):
	}
	for n := range callRuns {
		if err = run(n).run(); err != nil {
			break
		}
	}
	// It lets go of the processes and ends by the signal.
	_ = strace.Process.Signal(syscall.SIGINT)
	<-drained
	_ = strace.Wait() // its exit code is the signal
	if err != nil {
		return 0, 0, err
	}
	return countLines(out)
}

// awaitAttached closes attached at strace's first word, which it says of every
// process that it has got hold of, and drained at the end of its words.
func awaitAttached(r io.Reader, attached, drained chan<- struct{}) {
	defer close(drained)
	lines := bufio.NewScanner(r)
	if lines.Scan() {
		close(attached)
	}
	for lines.Scan() {
		continue // its pipe must not fill up
	}
}

func countLines(path string) (execs, syncs int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.Contains(line, "resumed>"):
			// The second half of a call; a call that was cut in two counts by
			// the half that has its result.
			if strings.Contains(line, "execve") && strings.HasSuffix(line, "= 0") {
				execs++
			}
		case execCall.MatchString(line):
			execs++
		case syncCall.MatchString(line):
			syncs++
		}
	}
	return execs, syncs, lines.Err()
}
