package supervisor

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/berthd/berth/speccheck"
)

// Sharing says which tasks one process of Berth's shim serves, where a task's
// annotations do not say it.
const (
	// SharingNamespace gives all tasks of a namespace one shim.
	SharingNamespace = "namespace"
	// SharingContainer gives every task a shim of its own.
	SharingContainer = "container"
)

const (
	// ownShim is the name of Berth's shim in a bin directory.
	ownShim = "containerd-shim-berth-v2"
	// maxSocketDir keeps a socket's path, which is the directory and 65 more
	// characters, within the kernel's limit.
	maxSocketDir = 42
)

// Config is what a Supervisor needs to know. Root, State, Address and
// TTRPCAddress have no default.
type Config struct {
	// Root holds what outlives a boot, State what does not.
	Root, State string
	// Address and TTRPCAddress are where shims find the daemon: the gRPC
	// socket, and the ttrpc socket that takes events.
	Address, TTRPCAddress string
	// Binary is what shims may execute to publish an event; default: the
	// program itself.
	Binary string
	// ShimBinary is Berth's shim; default: beside the program, else from PATH.
	ShimBinary string
	// OwnRuntimes are the runtime names that Berth's shim answers to; default
	// io.containerd.berth.v2 and io.containerd.runc.v2.
	OwnRuntimes []string
	// Sharing is SharingNamespace (the default) or SharingContainer.
	Sharing string
	// SocketDir is where shims make their sockets, at most 42 characters long;
	// default "s" in State, or /run/berth/s where that is too long.
	SocketDir string
	// ShimEnv are additional variables ("NAME=value") for shims that start.
	ShimEnv []string
	// Linger is how long Berth's shim stays when its last task is gone;
	// 0 leaves that to the shim.
	Linger time.Duration
	// Debug makes shims log more.
	Debug bool
	// Version is the daemon's, told to shims.
	Version string
	// Timeouts bound the calls to shims.
	Timeouts Timeouts
	// SpecCheck replaces what is done by default about specs that a runtime or
	// the host would ignore in part.
	SpecCheck speccheck.Policy
	// Publisher takes the events of tasks whose shim died. It is called with
	// the task's namespace in the context. nil drops them.
	Publisher events.Publisher
	// Mounts performs the mounts of a root file system that a shim does not do by
	// itself. nil leaves all to the shims. It stays the caller's.
	Mounts mount.Manager
	// Log is where the shims' logs go too; default slog.Default.
	Log *slog.Logger
}

// Timeouts bound each kind of call. A zero value means the default.
type Timeouts struct {
	// State bounds questions to a shim: state, pids, stats. Default 2s.
	State time.Duration
	// Connect bounds one attempt to reach a shim. Default 5s.
	Connect time.Duration
	// Load bounds taking up one task after a restart, and how long a call
	// waits for that. Default 5s.
	Load time.Duration
	// StartShim bounds the start of a shim process. Default 10s for a guard of
	// Berth's shim, 100s for other shims.
	StartShim time.Duration
	// Runtime bounds calls that run the OCI runtime: create, start, exec,
	// pause, resume, update, delete. Default 2m.
	Runtime time.Duration
	// Signal bounds kill, resize and close-stdin. Default 10s.
	Signal time.Duration
	// Checkpoint bounds a checkpoint. Default 30m.
	Checkpoint time.Duration
	// Shutdown bounds the wish that a foreign shim should end. Default 3s.
	Shutdown time.Duration
	// Cleanup bounds the "delete" command of a foreign shim. Default 10s.
	Cleanup time.Duration
	// Info bounds the "-info" command. Default 10s.
	Info time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.State, 2 * time.Second},
		{&t.Connect, 5 * time.Second},
		{&t.Load, 5 * time.Second},
		{&t.Runtime, 2 * time.Minute},
		{&t.Signal, 10 * time.Second},
		{&t.Checkpoint, 30 * time.Minute},
		{&t.Shutdown, 3 * time.Second},
		{&t.Cleanup, 10 * time.Second},
		{&t.Info, 10 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return t
}

func (t Timeouts) startGuard() time.Duration { return orDefault(t.StartShim, 10*time.Second) }
func (t Timeouts) startShim() time.Duration  { return orDefault(t.StartShim, 100*time.Second) }

func orDefault(d, value time.Duration) time.Duration {
	if d <= 0 {
		return value
	}
	return d
}

// complete fills in the defaults and refuses what cannot work.
func (c Config) complete() (Config, error) {
	for name, path := range map[string]string{"root": c.Root, "state": c.State} {
		if !filepath.IsAbs(path) {
			return c, fmt.Errorf("%s directory %q is not an absolute path: %w", name, path, errdefs.ErrInvalidArgument)
		}
	}
	if c.Sharing == "" {
		c.Sharing = SharingNamespace
	}
	if c.Sharing != SharingNamespace && c.Sharing != SharingContainer {
		return c, fmt.Errorf("shim sharing %q is neither %q nor %q: %w", c.Sharing, SharingNamespace, SharingContainer, errdefs.ErrInvalidArgument)
	}
	if err := c.SpecCheck.Check(); err != nil {
		return c, fmt.Errorf("policy of the spec check: %w", err)
	}
	if c.OwnRuntimes == nil {
		c.OwnRuntimes = []string{"io.containerd.berth.v2", "io.containerd.runc.v2"}
	}
	c.OwnRuntimes = slices.Clone(c.OwnRuntimes)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Timeouts = c.Timeouts.withDefaults()
	if err := c.findBinaries(); err != nil {
		return c, err
	}
	return c, c.findSocketDir()
}

// findBinaries leaves ShimBinary empty where there is none: foreign shims
// work without it.
func (c *Config) findBinaries() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program's own path: %w", err)
	}
	if c.Binary == "" {
		c.Binary = self
	}
	if c.ShimBinary != "" {
		if !filepath.IsAbs(c.ShimBinary) {
			return fmt.Errorf("shim binary %q is not an absolute path: %w", c.ShimBinary, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	if beside := filepath.Join(filepath.Dir(self), ownShim); executable(beside) == nil {
		c.ShimBinary = beside
	} else if found, err := exec.LookPath(ownShim); err == nil && filepath.IsAbs(found) {
		c.ShimBinary = found
	}
	return nil
}

func (c *Config) findSocketDir() error {
	if c.SocketDir == "" {
		c.SocketDir = filepath.Join(c.State, "s")
		if len(c.SocketDir) > maxSocketDir {
			c.SocketDir = "/run/berth/s"
		}
	}
	if !filepath.IsAbs(c.SocketDir) || len(c.SocketDir) > maxSocketDir {
		return fmt.Errorf("socket directory %q is not an absolute path of at most %d characters: %w", c.SocketDir, maxSocketDir, errdefs.ErrInvalidArgument)
	}
	return nil
}
