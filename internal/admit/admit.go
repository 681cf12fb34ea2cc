// Package admit decides, before anything is made, whether a runtime gets a
// spec: speccheck's judgement, with the features of the runtime's binary, this
// host and the administrator's policy.
package admit

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/speccheck"
)

const (
	// staleHost is how old what is known of the host may be when something is
	// refused; it is looked at again then.
	staleHost = time.Second
	// askTimeout bounds the question to a runtime's binary.
	askTimeout = 10 * time.Second
)

// Gate judges specs. Its zero value has the default policy. It must not be
// copied.
type Gate struct {
	// Policy is not changed once the gate is used.
	Policy speccheck.Policy

	cache ociruntime.FeatureCache

	mu     sync.Mutex
	host   speccheck.Host // guarded by mu
	probed time.Time      // guarded by mu; zero: not yet
}

// Features are those of an OCI runtime's binary, a path or a name in PATH; empty
// is runc. Only the first question to a binary runs it.
func (g *Gate) Features(ctx context.Context, binary string) (speccheck.Features, error) {
	return g.cache.Features(ctx, &ociruntime.Runtime{Binary: binary, Timeout: askTimeout})
}

// Create judges a whole spec. Names are further names of the runtime in the policy.
func (g *Gate) Create(spec []byte, f speccheck.Features, names ...string) (speccheck.Report, error) {
	return g.judge(speccheck.Check, spec, f, names)
}

// Restore judges whether the runtime can restore a checkpoint.
func (g *Gate) Restore(f speccheck.Features, names ...string) speccheck.Report {
	return speccheck.CheckRestore(f).Judge(g.Policy, names...)
}

// Exec judges the process of an exec.
func (g *Gate) Exec(process []byte, f speccheck.Features, names ...string) (speccheck.Report, error) {
	return g.judge(speccheck.CheckProcess, process, f, names)
}

// Update judges the resources of an update.
func (g *Gate) Update(resources []byte, f speccheck.Features, names ...string) (speccheck.Report, error) {
	return g.judge(speccheck.CheckResources, resources, f, names)
}

type check func([]byte, speccheck.Features, speccheck.Host) speccheck.Report

func (g *Gate) judge(c check, doc []byte, f speccheck.Features, names []string) (speccheck.Report, error) {
	host, age, err := g.hostNow(false)
	if err != nil {
		return speccheck.Report{}, err
	}
	r := c(doc, f, host).Judge(g.Policy, names...)
	if r.Action() < speccheck.Refuse || age < staleHost {
		return r, nil
	}
	if host, _, err = g.hostNow(true); err != nil {
		return speccheck.Report{}, err
	}
	return c(doc, f, host).Judge(g.Policy, names...), nil
}

// hostNow is what is known of the host, and how old that is.
func (g *Gate) hostNow(again bool) (speccheck.Host, time.Duration, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if again || g.probed.IsZero() {
		h, err := speccheck.ProbeHost()
		if err != nil {
			return speccheck.Host{}, 0, fmt.Errorf("look at what this host supports: %w", err)
		}
		g.host, g.probed = h, time.Now()
	}
	return g.host, time.Since(g.probed), nil
}

// Enforce logs what the report warns of, and returns what it refuses as one
// error, a FailedPrecondition.
func Enforce(r speccheck.Report, log *slog.Logger, what, id string) error {
	if err := r.Err(); err != nil {
		return err
	}
	for _, f := range r.With(speccheck.Warn) {
		log.Warn("what a spec asks for may be ignored", what, id, "path", f.Path, "value", f.Value, "reason", f.Lacks, "class", string(f.Class))
	}
	return nil
}
