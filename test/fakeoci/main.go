// Fakeoci is an OCI runtime for tests. It has runc's command line, its texts
// and its life cycle, but no isolation: a container's program runs on the host,
// needs no root, and belongs to its container by an environment variable.
// Failures can be ordered, see package fault.
//
// What it leaves out of a spec: namespaces, mounts, cgroups, users, rlimits,
// capabilities, seccomp and hooks.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/test/fakeoci/fault"
)

const (
	version     = "1.0.0"
	specVersion = "1.2.1"
	// callsFile is a log of all calls under a root, a JSON line each.
	callsFile = "calls.jsonl"
	// holdOp is the subcommand of the process that becomes the container's.
	holdOp = "__hold"
)

// runtime is one run of the binary.
type runtime struct {
	root, log string
	op, id    string
	// bundle is set while there is no state yet that tells it.
	bundle string
	stdout io.Writer
}

// command is a subcommand. run gets its arguments without the name.
type command struct {
	name string
	run  func(r *runtime, args []string) error
}

func commands() []command {
	return []command{
		{"create", create},
		{"start", start},
		{"kill", kill},
		{"delete", remove},
		{"state", state},
		{"ps", ps},
		{"pause", pause},
		{"resume", resume},
		{"update", update},
		{"exec", execute},
		{"checkpoint", checkpoint},
		{"restore", restore},
		{"features", printFeatures},
		{"list", list},
	}
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == holdOp {
		hold(os.Args[2]) // does not return
	}
	r := &runtime{stdout: os.Stdout}
	args, err := r.globalFlags(os.Args[1:])
	if err == nil && args != nil {
		err = r.dispatch(args)
	}
	if err == nil {
		return
	}
	r.report(err.Error())
	var coded exitCode
	if errors.As(err, &coded) {
		os.Exit(coded.code)
	}
	os.Exit(1)
}

// exitCode is an error with an exit code other than 1.
type exitCode struct {
	error
	code int
}

func (e exitCode) Unwrap() error { return e.error }

// globalFlags returns the arguments from the subcommand on, or nil when
// there is nothing more to do.
func (r *runtime) globalFlags(args []string) ([]string, error) {
	fs := newFlags("fakeoci")
	fs.StringVar(&r.root, "root", "/run/fakeoci", "")
	fs.StringVar(&r.log, "log", "", "")
	format := fs.String("log-format", "text", "")
	fs.Bool("systemd-cgroup", false, "")
	fs.Bool("debug", false, "")
	printVersion := fs.Bool("version", false, "")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *printVersion {
		fmt.Fprintf(r.stdout, "fakeoci version %s\nspec: %s\n", version, specVersion)
		return nil, nil
	}
	if *format != "json" && r.log != "" {
		return nil, fmt.Errorf("unknown log-format %q", *format)
	}
	if fs.NArg() == 0 {
		return nil, errors.New("no subcommand")
	}
	var err error
	r.root, err = filepath.Abs(r.root)
	return fs.Args(), err
}

func newFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	return fs
}

func (r *runtime) dispatch(args []string) error {
	r.op = args[0]
	for _, c := range commands() {
		if c.name != r.op {
			continue
		}
		if err := r.record(args); err != nil {
			return err
		}
		err := c.run(r, args[1:])
		if err != nil && r.op == "exec" {
			return exitCode{fmt.Errorf("exec failed: %w", err), 255}
		}
		return err
	}
	return exitCode{fmt.Errorf("No help topic for '%s'", r.op), 3} //nolint:staticcheck // runc's words
}

// record adds the call to the log of all calls.
func (r *runtime) record(args []string) error {
	if err := os.MkdirAll(r.root, 0o700); err != nil {
		return err
	}
	line, err := json.Marshal(map[string]any{"pid": os.Getpid(), "args": args})
	if err != nil {
		return err
	}
	return appendTo(filepath.Join(r.root, callsFile), line)
}

// appendTo writes one line with one write, so that lines of calls that run
// at the same time do not mix.
func appendTo(path string, line []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

// report logs an error the way runc does: an entry of the log, and stderr.
func (r *runtime) report(msg string) {
	if r.log != "" {
		line, err := json.Marshal(map[string]string{
			"level": "error", "msg": msg, "time": time.Now().UTC().Format(time.RFC3339),
		})
		if err == nil {
			err = appendTo(r.log, line)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	fmt.Fprintln(os.Stderr, msg)
}

// point is where an ordered failure may strike. It returns an error, or does
// not return, or nothing was ordered.
func (r *runtime) point(at fault.Point) error {
	rule, ok, err := r.order(func(s *fault.Set) (fault.Rule, bool, error) { return s.Take(r.op, r.id, at) })
	if err != nil || !ok {
		return err
	}
	switch rule.Action {
	case fault.Exit:
		return exitCode{errors.New(rule.Message), max(rule.Code, 1)}
	case fault.Crash:
		self, err := os.FindProcess(os.Getpid())
		if err != nil {
			return err
		}
		if err := self.Kill(); err != nil {
			return err
		}
		hang()
	case fault.Hang:
		hang()
	case fault.Sleep:
		time.Sleep(time.Duration(rule.SleepMillis) * time.Millisecond)
	}
	return nil
}

// hang waits for SIGKILL.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}

// order asks every directory that may hold rules.
func (r *runtime) order(take func(*fault.Set) (fault.Rule, bool, error)) (fault.Rule, bool, error) {
	dirs := []string{r.root}
	if d := os.Getenv(fault.DirEnv); d != "" {
		dirs = append(dirs, d)
	}
	if d := r.annotation(fault.DirAnnotation); d != "" {
		dirs = append(dirs, d)
	}
	for _, dir := range dirs {
		set, err := fault.Load(dir)
		if err != nil {
			return fault.Rule{}, false, err
		}
		if rule, ok, err := take(set); err != nil || ok {
			return rule, ok, err
		}
	}
	return fault.Rule{}, false, nil
}

// annotation returns one of the container's, or of the one to be made.
func (r *runtime) annotation(name string) string {
	if c, err := r.load(); err == nil {
		return c.Annotations[name]
	}
	if r.bundle != "" {
		if spec, err := loadSpec(r.bundle); err == nil {
			return spec.Annotations[name]
		}
	}
	return ""
}

// do runs the effect of a call between its two points of failure.
func (r *runtime) do(effect func() error) error {
	if err := r.point(fault.Before); err != nil {
		return err
	}
	if err := effect(); err != nil {
		return err
	}
	return r.point(fault.After)
}
