package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/admit"
	"github.com/berthd/berth/speccheck"
)

// The exit codes of check.
const (
	codeRefused   = 1 // something is refused
	codeUnchecked = 2 // the check could not be made
)

func (a *App) checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "say what of a spec the runtime or this host would ignore",
		ArgsUsage: "CONFIG.JSON",
		Category:  "System",
		Description: `The runtime is not started and no daemon is needed, but for --container. The file - is
standard input. The exit code is 0 when the spec would be let in (warnings are printed), 1 when something is refused,
2 when the check could not be made. The classes of findings are in docs/speccheck.md. Examples:
  berth check config.json
  berth check --runtime-binary crun --json config.json
  berth check --policy idmap=warn,crun:seccomp=allow config.json
  berth check --container web`,
		Flags: []cli.Flag{
			str("runtime-binary", "the OCI runtime's `PATH` or name (default: runc)"),
			str("container", "check the spec and the runtime of this `CONTAINER`"),
			str("policy", "judge by `SETTINGS` like CLASS=ACTION or RUNTIME:CLASS=ACTION, separated by commas, as berthd's configuration would"),
			yes("json", "print one JSON object"),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			r, err := a.check(ctx, cmd)
			if err != nil {
				return &exitError{code: codeUnchecked, err: err}
			}
			if err := a.printCheck(r, cmd.Bool("json")); err != nil {
				return &exitError{code: codeUnchecked, err: err}
			}
			if r.Action() == speccheck.Refuse {
				return &exitError{code: codeRefused}
			}
			return nil
		},
	}
}

// check finds spec and runtime, and judges.
func (a *App) check(ctx context.Context, cmd *cli.Command) (speccheck.Report, error) {
	policy, err := speccheck.ParsePolicy(cmd.String("policy"))
	if err != nil {
		return speccheck.Report{}, fmt.Errorf("--policy: %w", err)
	}
	gate := &admit.Gate{Policy: policy}
	binary, id := cmd.String("runtime-binary"), cmd.String("container")
	switch {
	case id != "" && cmd.NArg() > 0:
		return speccheck.Report{}, usageError("--container has a spec of its own: leave %q out", cmd.Args().First())
	case id != "":
		return a.checkContainer(ctx, cmd, gate, id, binary)
	case cmd.NArg() != 1:
		return speccheck.Report{}, usageError("name one config.json, or --container (berth check --help)")
	}
	spec, err := a.readSpecFile(cmd.Args().First())
	if err != nil {
		return speccheck.Report{}, err
	}
	return judgeSpec(ctx, gate, spec, binary)
}

func judgeSpec(ctx context.Context, gate *admit.Gate, spec []byte, binary string, names ...string) (speccheck.Report, error) {
	f, err := gate.Features(ctx, binary)
	if err != nil {
		return speccheck.Report{}, err
	}
	return gate.Create(spec, f, names...)
}

// readSpecFile reads a file, or standard input. Check itself says that a spec
// is too large.
func (a *App) readSpecFile(path string) ([]byte, error) {
	in := io.Reader(a.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	spec, err := io.ReadAll(io.LimitReader(in, speccheck.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return spec, nil
}

func (a *App) checkContainer(ctx context.Context, cmd *cli.Command, gate *admit.Gate, id, binary string) (r speccheck.Report, err error) {
	err = a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		c, err := s.client.ContainerService().Get(ctx, id)
		if err != nil {
			return containerError(id, err)
		}
		if c.Spec == nil {
			return fmt.Errorf("container %q has no spec", id)
		}
		named, runc := runtimeBinary(c)
		switch {
		case binary != "":
		case runc:
			binary = named
		default:
			f, err := s.shimFeatures(ctx, c)
			if err != nil {
				return err
			}
			r, err = gate.Create(c.Spec.GetValue(), f, c.Runtime.Name)
			return err
		}
		r, err = judgeSpec(ctx, gate, c.Spec.GetValue(), binary, c.Runtime.Name)
		return err
	})
	return r, err
}

// runtimeBinary is the OCI runtime that a container's shim would run; ok is false
// where only the shim knows.
func runtimeBinary(c containers.Container) (binary string, ok bool) {
	if c.Runtime.Options == nil || c.Runtime.Options.GetTypeUrl() == "" {
		name := filepath.Base(c.Runtime.Name)
		return "", strings.HasSuffix(name, "runc.v2") || strings.HasSuffix(name, "berth.v2") || name == "containerd-shim-runc-v2"
	}
	var o options.Options
	if err := typeurl.UnmarshalTo(c.Runtime.Options, &o); err != nil {
		return "", false
	}
	return o.BinaryName, true
}

// shimFeatures are what the container's shim says that its runtime supports.
func (s *session) shimFeatures(ctx context.Context, c containers.Container) (speccheck.Features, error) {
	req := &types.RuntimeRequest{RuntimePath: c.Runtime.Name}
	if c.Runtime.Options != nil {
		req.Options = typeurl.MarshalProto(c.Runtime.Options)
	}
	answer, err := s.client.IntrospectionService().PluginInfo(ctx, "io.containerd.runtime.v2", "task", req)
	if err != nil {
		return speccheck.Features{}, fmt.Errorf("what runtime %q supports: %w", c.Runtime.Name, native(err))
	}
	return featuresOf(answer, c.Runtime.Name)
}

func featuresOf(answer *introspection.PluginInfoResponse, name string) (speccheck.Features, error) {
	var info types.RuntimeInfo
	if answer.GetExtra() == nil {
		return speccheck.Features{}, errors.New("the daemon does not say what its runtimes support")
	}
	if err := typeurl.UnmarshalTo(answer.Extra, &info); err != nil {
		return speccheck.Features{}, fmt.Errorf("what runtime %q supports: %w", name, err)
	}
	return speccheck.ParseFeatures(info.GetFeatures().GetValue(), speccheck.ShimRuntime(shimBinary(name)))
}

// shimBinary is the shim that a runtime's name stands for, as containerd finds
// it: io.containerd.kata.v2 is containerd-shim-kata-v2.
func shimBinary(name string) string {
	parts := strings.Split(name, ".")
	if n := len(parts); n >= 2 && !strings.Contains(name, "/") {
		return "containerd-shim-" + parts[n-2] + "-" + parts[n-1]
	}
	return name
}

// checkRow is a finding as `berth check --json` prints it. The names of the
// fields stay as they are.
type checkRow struct {
	speccheck.Finding
	Setting string `json:"setting"`
	Docs    string `json:"docs"`
}

func (a *App) printCheck(r speccheck.Report, asJSON bool) error {
	if asJSON {
		rows := make([]checkRow, len(r.Findings))
		for i, f := range r.Findings {
			rows[i] = checkRow{Finding: f, Setting: f.Setting(), Docs: f.Docs()}
		}
		return a.printJSON(struct {
			Runtime  speccheck.Runtime `json:"runtime"`
			Action   speccheck.Action  `json:"action"`
			Findings []checkRow        `json:"findings"`
			More     int               `json:"more"`
		}{r.Runtime, r.Action(), rows, r.More})
	}
	if len(r.Findings) == 0 {
		_, err := fmt.Fprintf(a.Stdout, "%s and this host do all that the spec asks for\n", printable(r.Runtime.String()))
		return err
	}
	rows := make([][]string, len(r.Findings))
	for i, f := range r.Findings {
		rows[i] = []string{f.Action.String(), f.Path, f.Value, string(f.Class), f.Lacks}
	}
	err := table(a.Stdout, []string{"ACTION", "PATH", "VALUE", "CLASS", "WHY"}, rows)
	if r.More > 0 {
		fmt.Fprintf(a.Stdout, "and %d more\n", r.More)
	}
	return err
}
