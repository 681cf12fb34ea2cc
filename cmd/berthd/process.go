package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/containerd/v2/core/diff"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// prepareProcess gives the daemon its place on the host. What it starts later
// inherits it, so it comes before the engine. An OOM score that the kernel does
// not allow is a warning, as with containerd.
func prepareProcess(cfg *config, log *slog.Logger) error {
	if cfg.OOMScore != 0 {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(cfg.OOMScore)), 0); err != nil {
			log.Warn("oom_score is not applied", slog.Int("score", cfg.OOMScore), slog.Any("error", err))
		}
	}
	if cfg.Cgroup != "" {
		if err := joinCgroup(cfg.Cgroup); err != nil {
			return fmt.Errorf("cgroup %s: %w", cfg.Cgroup, err)
		}
	}
	if cfg.Temp != "" {
		if err := os.MkdirAll(cfg.Temp, 0o700); err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
		if err := os.Setenv("TMPDIR", cfg.Temp); err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
	}
	return nil
}

// joinCgroup moves the daemon to a cgroup. With cgroup v1 it is made if need
// be; on v2 its controllers are its owner's business, so it must be there.
func joinCgroup(path string) error {
	pid := uint64(os.Getpid())
	if cgroups.Mode() == cgroups.Unified {
		cg, err := cgroup2.Load(path)
		if err != nil {
			return err
		}
		return cg.AddProc(pid)
	}
	cg, err := cgroup1.Load(cgroup1.StaticPath(path))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		cg, err = cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{})
	}
	if err != nil {
		return err
	}
	return cg.AddProc(pid)
}

// registerProcessors makes the programs known that turn layers of unusual media
// types into common ones. The library keeps them for the whole process.
func registerProcessors(processors map[string]streamProcessor) {
	for _, id := range slices.Sorted(maps.Keys(processors)) {
		p := processors[id]
		diff.RegisterProcessor(diff.BinaryHandler(id, p.Returns, p.Accepts, p.Path, p.Args, p.Env))
	}
}
