package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// remove ends a container of the bench and removes it.
func (e *engine) remove(id string) error {
	// Not with the bench's context: what is to be removed has to go.
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	// The exit code is the task's: what counts is that the container can go.
	_ = e.ctr(ctx, "tasks", "delete", "--force", id).run()
	return e.ctr(ctx, "containers", "rm", id).run()
}

// idleBare starts a container that idles by the bare runtime. The function
// that it returns ends it.
func (l *lab) idleBare(ctx context.Context, id string) (func() error, error) {
	bundle := filepath.Join(l.dir, "idle")
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return nil, err
	}
	spec, err := os.ReadFile(filepath.Join(l.bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(bundle, "config.json")
	if err := os.WriteFile(path, spec, 0o644); err != nil {
		return nil, err
	}
	err = editJSON(path, func(spec map[string]any) {
		spec["root"] = map[string]any{"path": filepath.Join(l.bundle, "rootfs")}
		if process, ok := spec["process"].(map[string]any); ok {
			process["args"] = []string{"sleep", "100000"}
		}
		if linux, ok := spec["linux"].(map[string]any); ok {
			linux["cgroupsPath"] = "/" + l.engines[0].namespace + "/bare-idle"
		}
	})
	if err != nil {
		return nil, err
	}
	// Detached, its stdio is what runc's is: nothing.
	start := l.bare(ctx, "run", "--detach", "--bundle", bundle, id)
	if _, err := start.time(); err != nil {
		return nil, err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		return l.bare(ctx, "delete", "--force", id).run()
	}, nil
}

// measureMemory reads the memory of each engine with N idle containers, one
// engine after the other.
func (l *lab) measureMemory(ctx context.Context) ([]figure, error) {
	var figures []figure
	for _, e := range l.engines {
		measured, err := e.measureMemory(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		figures = append(figures, measured...)
	}
	return figures, nil
}

func (e *engine) measureMemory(ctx context.Context) (_ []figure, err error) {
	n := e.lab.opts.containers
	for i := range n {
		id := fmt.Sprintf("mem%d", i)
		if err := e.ctr(ctx, "run", "--detach", "--null-io", image, id, "sleep", "100000").run(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, e.remove(id)) }()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(e.lab.opts.settle):
	}
	var all, daemon float64
	pids := e.processes()
	for _, pid := range pids {
		pss, err := readPSS(pid)
		if err != nil {
			return nil, err
		}
		all += pss
		if pid == e.cmd.Process.Pid {
			daemon = pss
		}
	}
	each := func(variant string, kib float64) figure {
		return figure{Row: fmt.Sprintf("memory, %d idle", n), Variant: variant, Unit: "KiB each", Value: kib / float64(n), Samples: 1}
	}
	return []figure{
		each(e.name+", daemon included", all),
		each(e.name+", without the daemon", all-daemon),
		{
			Row: fmt.Sprintf("memory, %d idle", n), Variant: e.name + ", processes", Unit: "",
			Value: float64(len(pids)), Samples: 1,
		},
	}, nil
}

// readPSS reads the proportional set size of a process, in KiB.
func readPSS(pid int) (float64, error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "Pss: %f kB", &kib); err == nil {
			return kib, nil
		}
	}
	return 0, fmt.Errorf("%s has no Pss", path)
}
