package shim

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/admit"
	"github.com/berthd/berth/speccheck"
	"github.com/berthd/berth/task"
)

// EnvSpecCheck is the policy of a shim under another daemon than Berth's, in
// the syntax of speccheck.ParsePolicy. It comes with the daemon's environment:
// no client can set it.
const EnvSpecCheck = "BERTH_SPECCHECK"

// runtimeFile is where a bundle keeps the name of its OCI runtime.
const runtimeFile = "runtime"

// admission refuses what the OCI runtime or the host would ignore. berthd does
// so itself, before there is a bundle; other daemons do not. A nil admission lets
// everything pass.
type admission struct {
	gate *admit.Gate
	// hold keeps the shim's reaper from taking a runtime that is asked for an
	// orphan, until the returned function is called.
	hold func() (release func())
	log  *slog.Logger
}

// newAdmission takes the policy from the environment.
func newAdmission(policy string, hold func() func(), log *slog.Logger) (*admission, error) {
	p, err := speccheck.ParsePolicy(policy)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvSpecCheck, err)
	}
	return &admission{gate: &admit.Gate{Policy: p}, hold: hold, log: log}, nil
}

// features are those of the OCI runtime's binary.
func (a *admission) features(ctx context.Context, binary string) (speccheck.Features, error) {
	defer a.hold()()
	return a.gate.Features(ctx, binary)
}

func (a *admission) create(ctx context.Context, id string, cfg task.CreateConfig) error {
	if a == nil {
		return nil
	}
	options, err := decodeOptions(cfg.Options)
	if err != nil {
		return fmt.Errorf("create container %q: %w", id, err)
	}
	spec, err := readCapped(filepath.Join(cfg.Bundle, "config.json"), speccheck.MaxSize)
	if err != nil {
		return fmt.Errorf("create container %q: %w", id, err)
	}
	if err := a.judge(ctx, a.gate.Create, spec, options.Binary, id); err != nil {
		return fmt.Errorf("create container %q: %w", id, err)
	}
	if cfg.Checkpoint == "" {
		return nil
	}
	f, err := a.features(ctx, options.Binary)
	if err != nil {
		return fmt.Errorf("create container %q: %w", id, err)
	}
	return admit.Enforce(a.gate.Restore(f), a.log, "container", id)
}

func (a *admission) exec(ctx context.Context, t task.Task, execID string, process []byte) error {
	if a == nil {
		return nil
	}
	if err := a.running(ctx, t, a.gate.Exec, process); err != nil {
		return fmt.Errorf("exec %q of container %q: %w", execID, t.ID().Container, err)
	}
	return nil
}

func (a *admission) update(ctx context.Context, t task.Task, resources []byte) error {
	if a == nil {
		return nil
	}
	if err := a.running(ctx, t, a.gate.Update, resources); err != nil {
		return fmt.Errorf("update container %q: %w", t.ID().Container, err)
	}
	return nil
}

// judge is one of the gate's methods.
type judge func(doc []byte, f speccheck.Features, names ...string) (speccheck.Report, error)

func (a *admission) running(ctx context.Context, t task.Task, j judge, doc []byte) error {
	st, err := t.State(ctx)
	if err != nil {
		return err
	}
	binary, err := readCapped(filepath.Join(st.Bundle, runtimeFile), 4<<10)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return a.judge(ctx, j, doc, strings.TrimSpace(string(binary)), t.ID().Container)
}

// judge asks the runtime only about a document that needs more than every
// runtime has: a shim that serves one container would run it for each.
func (a *admission) judge(ctx context.Context, j judge, doc []byte, binary, id string) error {
	r, err := j(doc, speccheck.Features{})
	if err != nil || len(r.Findings) == 0 {
		return err
	}
	f, err := a.features(ctx, binary)
	if err != nil {
		return err
	}
	if r, err = j(doc, f); err != nil {
		return err
	}
	return admit.Enforce(r, a.log, "container", id)
}

// readCapped reads a file of at most limit bytes.
func readCapped(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, limit, errdefs.ErrInvalidArgument)
	}
	return data, err
}
