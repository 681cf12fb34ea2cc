package supervisor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/internal/admit"
	"github.com/berthd/berth/speccheck"
	"github.com/berthd/berth/task"
)

const (
	// runtimeFile is where shims that run an OCI runtime keep its name.
	runtimeFile = "runtime"
	stockShim   = "containerd-shim-runc-v2"
	runcOptions = "containerd.runc.v1.Options"
	resources   = "opencontainers/runtime-spec/1/LinuxResources"
)

// checkSpec refuses a spec that the runtime or the host would ignore in part.
// Nothing has been made by then.
func (s *Supervisor) checkSpec(ctx context.Context, id task.ID, rt runtime, cfg task.CreateConfig) error {
	if len(cfg.Spec) == 0 {
		return nil
	}
	f, err := s.runtimeFeatures(ctx, rt, cfg.Options)
	if err != nil {
		return err
	}
	r, err := s.gate.Create(cfg.Spec, f, cfg.Runtime, rt.path)
	if err != nil {
		return err
	}
	if err := admit.Enforce(r, s.cfg.Log, "task", id.String()); err != nil || cfg.Checkpoint == "" {
		return err
	}
	return admit.Enforce(s.gate.Restore(f, cfg.Runtime, rt.path), s.cfg.Log, "task", id.String())
}

// runtimeFeatures are those of the runtime that a task would be created with.
func (s *Supervisor) runtimeFeatures(ctx context.Context, rt runtime, opts task.Any) (speccheck.Features, error) {
	binary, runc := ociBinary(opts)
	switch {
	case rt.own && (runc || opts.Empty()):
		return s.gate.Features(ctx, binary)
	case rt.own:
		return speccheck.Features{}, nil // the shim refuses such options
	}
	f := s.foreignFeatures(ctx, rt.path, opts)
	if !f.Documented() && (runc || opts.Empty() && filepath.Base(rt.path) == stockShim) {
		return s.gate.Features(ctx, binary)
	}
	return f, nil
}

// foreignFeatures are what another maker's shim says. One that says nothing is
// a runtime of which nothing is known.
func (s *Supervisor) foreignFeatures(ctx context.Context, shim string, opts task.Any) speccheck.Features {
	rt := speccheck.ShimRuntime(shim)
	req := &types.RuntimeRequest{RuntimePath: shim}
	if !opts.Empty() {
		req.Options = anyOf(opts)
	}
	info, err := s.PluginInfo(ctx, req)
	if err != nil {
		s.cfg.Log.Debug("a shim does not say what it supports", "shim", shim, "error", err)
		return speccheck.Features{Runtime: rt}
	}
	f, err := speccheck.ParseFeatures(info.GetFeatures().GetValue(), rt)
	if err != nil {
		s.cfg.Log.Debug("what a shim says it supports cannot be read", "shim", shim, "error", err)
		return speccheck.Features{Runtime: rt}
	}
	return f
}

// ociBinary reads the OCI runtime out of runc's options.
func ociBinary(opts task.Any) (binary string, ok bool) {
	var o options.Options
	if !strings.HasSuffix(opts.TypeURL, runcOptions) || proto.Unmarshal(opts.Value, &o) != nil {
		return "", false
	}
	return o.BinaryName, true
}

// features are those of the task's runtime, of which the bundle knows the
// binary, whoever made the task.
func (t *Task) features(ctx context.Context) (speccheck.Features, error) {
	if name, err := t.bundle.ReadFile(runtimeFile, maxPath); err == nil {
		return t.s.gate.Features(ctx, strings.TrimSpace(string(name)))
	}
	if t.foreign == nil {
		return speccheck.Features{}, nil // the task was not taken up
	}
	return t.s.foreignFeatures(ctx, t.foreign.path, task.Any{}), nil
}

// judge is one of the gate's methods.
type judge func(doc []byte, f speccheck.Features, names ...string) (speccheck.Report, error)

// check judges what is to change in a running task.
func (t *Task) check(ctx context.Context, j judge, doc []byte) error {
	if err := t.await(ctx); err != nil {
		return err
	}
	f, err := t.features(ctx)
	if err != nil {
		return err
	}
	var names []string
	if t.foreign != nil {
		names = append(names, t.foreign.path)
	}
	r, err := j(doc, f, names...)
	if err != nil {
		return err
	}
	return admit.Enforce(r, t.s.cfg.Log, "task", t.id.String())
}

func (t *Task) checkExec(ctx context.Context, execID string, process []byte) error {
	if err := t.check(ctx, t.s.gate.Exec, process); err != nil {
		return fmt.Errorf("exec %q of task %q: %w", execID, t.id.Container, err)
	}
	return nil
}

func (t *Task) checkUpdate(ctx context.Context, r task.Any) error {
	if !strings.HasSuffix(r.TypeURL, resources) {
		return nil // the shim decides about what is not for an OCI runtime
	}
	if err := t.check(ctx, t.s.gate.Update, r.Value); err != nil {
		return fmt.Errorf("update task %q: %w", t.id.Container, err)
	}
	return nil
}
