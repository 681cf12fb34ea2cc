// Package cli is the command `berth`: one file a verb. A verb parses its flags,
// calls the daemon through containerd's client, and returns an error or prints
// a result. Nothing but App.Run decides about exit codes and error texts.
package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/version"
)

// App is one run of the command.
type App struct {
	// Stdin, Stdout and Stderr are the user's; they stay the caller's.
	Stdin, Stdout, Stderr *os.File

	// signals has what arrived for this process since Run began.
	signals chan os.Signal
	// watching is closed when catchSignals's goroutine, the first reader of
	// signals, has ended: closing takeover makes it.
	takeover, watching chan struct{}
	// forwarding is catchForwarded's goroutine.
	forwarding sync.WaitGroup
}

// global are the flags that stand before the verb.
type global struct {
	address        string
	addressGiven   bool
	namespace      string
	debug          bool
	timeout        time.Duration
	connectTimeout time.Duration
}

// errInterrupted is the cause of a context that a signal cancelled.
var errInterrupted = errors.New("interrupted")

// Run runs the command line args, args[0] being the program's name, and
// returns the exit code. It prints what is to be printed.
func (a *App) Run(ctx context.Context, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := a.catchSignals(ctx, cancel)
	defer stop()
	// The libraries' own warnings are no answer to a user's command.
	log.L.Logger.SetOutput(io.Discard)

	root := a.root()
	lone(root, args)
	err := root.Run(ctx, args)
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		err = &exitError{code: 130} // the user knows why
	}
	return a.report(verbOf(root), err, root.Bool("debug"))
}

// ending are the signals that end a command. A broken pipe is caught beside them:
// it is an error of the write, not the end of this process, for there may be a
// container to look after.
func ending() []os.Signal {
	return []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE}
}

// forwarded are the other signals that a process in the foreground gets: all
// that can be caught, but for job control (TSTP, TTIN, TTOU, CONT), which
// suspends this command and not the container, CHLD and URG, which are this
// process's own, and PROF and 32 to 34, which Go keeps. WINCH is the terminal's.
func forwarded() []os.Signal {
	list := []os.Signal{
		unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGUSR1, unix.SIGSEGV, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGSTKFLT, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGWINCH,
		unix.SIGIO, unix.SIGPWR, unix.SIGSYS,
	}
	for s := unix.Signal(35); s <= 64; s++ {
		list = append(list, s)
	}
	return list
}

// catchSignals cancels the context with the first signal that asks to end,
// until a verb calls takeSignals.
func (a *App) catchSignals(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	a.signals = make(chan os.Signal, 64)
	a.takeover = make(chan struct{})
	a.watching = make(chan struct{})
	signal.Notify(a.signals, ending()...)
	go func() {
		defer close(a.watching)
		for {
			select {
			case <-ctx.Done():
				return
			case <-a.takeover:
				return
			case s := <-a.signals:
				switch s {
				case unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT:
					cancel(errInterrupted)
				}
			}
		}
	}()
	return func() {
		a.forwarding.Wait()
		signal.Stop(a.signals)
		cancel(nil)
		<-a.watching
	}
}

// catchForwarded begins to keep the signals for a process in the foreground, for
// takeSignals. Each takes Go two switches of threads, 2 ms for all of them, so
// that goes on beside the calls that start the process. It may be called once.
func (a *App) catchForwarded() {
	a.forwarding.Go(func() { signal.Notify(a.signals, forwarded()...) })
}

// takeSignals gives the caller the signals that would have ended the command,
// and the forwarded ones. It may be called once.
func (a *App) takeSignals() <-chan os.Signal {
	close(a.takeover)
	<-a.watching
	return a.signals
}

// root is the command tree.
func (a *App) root() *cli.Command {
	root := &cli.Command{
		Name:            "berth",
		Usage:           "run and manage containers",
		UsageText:       "berth [global flags] VERB [flags] [arguments]",
		Version:         version.Get().String(),
		Suggest:         true,
		HideHelpCommand: true,
		Writer:          a.Stdout,
		ErrWriter:       a.Stderr,
		Description: `Examples:
  berth import image.tar                   load an image from a tar archive
  berth pull registry.example/alpine       fetch one from a registry
  berth run --rm -it alpine sh             a shell in a new container
  berth run -d --name web alpine httpd -f  a container in the background
  berth logs -f web                        what it prints
  berth exec -it web sh                    a shell beside it
  berth stop web && berth rm web           end it and take it away

The daemon berthd is started by itself where nothing listens on the default
address. "berth completion bash" prints a completion script (also zsh, fish).`,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "address", Aliases: []string{"a"}, Local: true, Value: defaultAddress,
				Sources: cli.EnvVars("CONTAINERD_ADDRESS"), Usage: "the daemon's `SOCKET`",
			},
			&cli.StringFlag{
				Name: "namespace", Aliases: []string{"n"}, Local: true, Value: "default",
				Sources: cli.EnvVars("CONTAINERD_NAMESPACE"), Usage: "the `NAMESPACE` of containers and images",
			},
			&cli.BoolFlag{Name: "debug", Local: true, Usage: "say more on standard error: of an error, all that led to it"},
			&cli.DurationFlag{Name: "timeout", Local: true, Usage: "give up after this `TIME` (0: never)"},
			&cli.DurationFlag{Name: "connect-timeout", Local: true, Value: 10 * time.Second, Usage: "wait this `TIME` for the daemon"},
		},
		Commands: []*cli.Command{
			a.runCommand(), a.createCommand(), a.startCommand(), a.attachCommand(), a.execCommand(),
			a.psCommand(), a.logsCommand(), a.waitCommand(), a.inspectCommand(),
			a.killCommand(), a.stopCommand(), a.restartCommand(), a.updateCommand(), a.topCommand(), a.statsCommand(), a.cpCommand(), a.pauseCommand(), a.unpauseCommand(), a.checkpointCommand(), a.restoreCommand(), a.rmCommand(),
			a.pullCommand(), a.pushCommand(), a.importCommand(), a.exportCommand(), a.imagesCommand(), a.imageCommand(),
			a.tagCommand(), a.rmiCommand(),
			a.namespaceCommand(), a.systemCommand(), a.eventsCommand(), a.infoCommand(), a.checkCommand(), a.versionCommand(), a.completionCommand(),
			a.networkHookCommand(), a.docsCommand(), a.completeCommand(),
		},
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return usageError("unknown command %q (see berth --help)", cmd.Args().First())
			}
			return cli.ShowRootCommandHelp(cmd)
		},
	}
	quiet(root)
	return root
}

// lone leaves of the tree the one verb that args name: the library sets up every
// command's flags and help, which takes as long as gRPC's start. Where help or an
// unknown verb is asked for, the tree stays whole.
func lone(root *cli.Command, args []string) {
	takesValue := map[string]bool{}
	for _, f := range root.Flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, name := range f.Names() {
			takesValue[name] = !isBool
		}
	}
	for i := 1; i < len(args); i++ {
		flag, isFlag := strings.CutPrefix(args[i], "-")
		if !isFlag {
			if c := root.Command(args[i]); c != nil {
				root.Commands = []*cli.Command{c}
			}
			return
		}
		value, known := takesValue[strings.TrimPrefix(flag, "-")]
		switch {
		case value:
			i++
		case !known && !strings.Contains(flag, "="):
			return
		}
	}
}

// quiet sets, on every command, what the library does not inherit: errors are
// returned and not printed with a page of help, and lists are never split at
// commas.
func quiet(cmd *cli.Command) {
	cmd.DisableSliceFlagSeparator = true
	cmd.OnUsageError = func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		return usageError("%w (see %s --help)", err, cmd.FullName())
	}
	for _, sub := range cmd.Commands {
		quiet(sub)
	}
}

func globals(cmd *cli.Command) global {
	root := cmd.Root()
	return global{
		address:        root.String("address"),
		addressGiven:   root.IsSet("address"),
		namespace:      root.String("namespace"),
		debug:          root.Bool("debug"),
		timeout:        root.Duration("timeout"),
		connectTimeout: root.Duration("connect-timeout"),
	}
}

// verbOf names the verb of a command line that was parsed, for error messages.
func verbOf(root *cli.Command) string {
	if c := root.Command(root.Args().First()); c != nil {
		return c.Name
	}
	return ""
}

// printf writes a line of a result. A write that fails (a closed pipe) is not
// the command's failure.
func (a *App) printf(format string, args ...any) { fmt.Fprintf(a.Stdout, format, args...) }

// warnf writes a line to standard error.
func (a *App) warnf(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "berth: "+format+"\n", args...)
}

// maxLine bounds what a user answers to a question.
const maxLine = 64 << 10

// readLine reads a line of standard input, until a signal interrupts it.
func (a *App) readLine(ctx context.Context) (string, error) {
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // a read of a terminal cannot be interrupted: it ends with the program
		line, err := bufio.NewReader(io.LimitReader(a.Stdin, maxLine)).ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case r := <-got:
		return r.line, r.err
	case <-ctx.Done():
		fmt.Fprintln(a.Stderr)
		return "", ctx.Err()
	}
}
