// Package container runs containers: their init processes and the processes
// added to them, from create to delete. It is the heart of the shim and knows
// no RPC.
//
// A [Set] holds the containers of one shim. What a container is and does next
// is on disk, in its bundle, before each step, so that the Set of a successor
// can take it up: see [Set.Adopt] and state.go.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/ociruntime"
	"github.com/berthd/berth/internal/reap"
	"github.com/berthd/berth/internal/stdio"
	"github.com/berthd/berth/task"
)

// Options say how to call the OCI runtime.
type Options struct {
	// Binary is the runtime's name or path; empty is runc.
	Binary string `json:"binary,omitempty"`
	// Root is the directory of the runtime's state; empty is Config.RuntimeRoot.
	Root          string `json:"root,omitempty"`
	SystemdCgroup bool   `json:"systemdCgroup,omitempty"`
	NoPivotRoot   bool   `json:"noPivotRoot,omitempty"`
	NoNewKeyring  bool   `json:"noNewKeyring,omitempty"`
	// IOUID and IOGID own the container's ends of the stdio pipes.
	IOUID int `json:"ioUid,omitempty"`
	IOGID int `json:"ioGid,omitempty"`
	// CriuImagePath and CriuWorkPath are directories for checkpoints.
	CriuImagePath string `json:"criuImagePath,omitempty"`
	CriuWorkPath  string `json:"criuWorkPath,omitempty"`
}

// CheckpointOptions are the runtime's flags of a checkpoint.
type CheckpointOptions struct {
	Exit                bool
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
	CgroupsMode         string
	ImagePath           string
	WorkPath            string
	ParentPath          string
}

// Config is what a Set works with. None of it is closed by the Set.
type Config struct {
	Reaper *reap.Reaper
	// Ancestor is the guard; nil without one.
	Ancestor reap.Ancestor
	// Keeper holds fds for a successor; nil without a guard.
	Keeper stdio.Keeper
	// OpenFIFO opens a FIFO for reading, of which fifo is an O_PATH descriptor, in a
	// process that outlives this one, and has the result kept under the name. nil
	// without a guard.
	OpenFIFO func(name string, fifo int) (int, error)
	// Watcher notices late readers of output.
	Watcher *stdio.Watcher
	// Files lets several processes write one file; the Set shares it among all.
	Files  *stdio.Files
	Events Events
	// Members is a directory in which the Set links the bundles of its containers for a
	// successor to find. Empty: nobody will succeed.
	Members string
	// RuntimeRoot is the default parent of the runtime's state directories,
	// one for each namespace.
	RuntimeRoot string
	// DecodeOptions and DecodeCheckpointOptions know the wire form of the
	// options in task.CreateConfig and task.CheckpointConfig.
	DecodeOptions           func(task.Any) (Options, error)
	DecodeCheckpointOptions func(task.Any) (CheckpointOptions, error)
	Log                     *slog.Logger
}

const (
	// callTimeout bounds a runtime call.
	callTimeout = 2 * time.Minute
	// execGrace is how long the exit of an init process waits for its execs,
	// which the kernel kills with it.
	execGrace = 10 * time.Second
	// drainGrace is how long a delete waits for output that nobody takes.
	drainGrace = 2 * time.Second
	// killGrace is how long a delete waits for a process that it has killed.
	killGrace = 10 * time.Second
)

// Set is a task.Runner over the OCI runtime.
type Set struct {
	cfg Config
	own cgroup.Paths
	wg  sync.WaitGroup
	// oom runs in a goroutine of its own, counted by watching, from New to Close.
	oom      *cgroup.OOMWatcher
	watching sync.WaitGroup
	// adopted are the processes between Adopt and Release, which one
	// goroutine calls before the set is shared.
	adopted []*process

	mu         sync.Mutex
	containers map[task.ID]*Container // guarded by mu; nil while being created
	closed     bool                   // guarded by mu
	used       bool                   // there was a container, guarded by mu
	idle       chan struct{}          // closed while the set is empty, guarded by mu
}

var _ task.Runner = (*Set)(nil)

// New makes an empty set.
func New(cfg Config) (*Set, error) {
	own, err := cgroup.Of(selfPid())
	if err != nil {
		return nil, err
	}
	s := &Set{cfg: cfg, own: own, containers: map[task.ID]*Container{}, idle: make(chan struct{})}
	close(s.idle)
	if s.oom, err = cgroup.NewOOMWatcher(); err != nil {
		return nil, err
	}
	s.watching.Go(s.oom.Run)
	return s, nil
}

// Close waits for work under way, for at most as long as ctx lasts.
// Containers are left as they are, for a successor.
func (s *Set) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if err := s.oom.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		s.cfg.Log.Warn("stop to look for kills for memory", "error", err)
	}
	s.watching.Wait()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("containers are still busy: %w", ctx.Err())
	}
}

// Idle is closed while the set has no containers. Ask again after each
// change: a set that fills gets a new channel.
func (s *Set) Idle() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle
}

// CloseIfEmpty closes the set to new containers, unless it has some.
func (s *Set) CloseIfEmpty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) > 0 {
		return false
	}
	s.closed = true
	return true
}

// reserve takes an id before the slow part of a create.
func (s *Set) reserve(id task.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("create container %q: the shim is shutting down: %w", id.Container, errdefs.ErrUnavailable)
	}
	if _, taken := s.containers[id]; taken {
		return fmt.Errorf("container %q: %w", id.Container, errdefs.ErrAlreadyExists)
	}
	if len(s.containers) == 0 {
		s.idle = make(chan struct{})
	}
	s.containers[id], s.used = nil, true
	return nil
}

func (s *Set) put(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.containers) == 0 {
		s.idle = make(chan struct{})
	}
	s.containers[c.id], s.used = c, true
}

// Used says that the set has, or had, a container or a part of one.
func (s *Set) Used() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *Set) remove(id task.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.containers[id]; !ok {
		return
	}
	delete(s.containers, id)
	if len(s.containers) == 0 {
		close(s.idle)
	}
}

// Get implements task.Runner.
func (s *Set) Get(_ context.Context, id task.ID) (task.Task, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("container %q: %w", id.Container, errdefs.ErrNotFound)
	}
	return c, nil
}

// List implements task.Runner. An empty namespace lists all.
func (s *Set) List(_ context.Context, namespace string) ([]task.Task, error) {
	s.mu.Lock()
	list := make([]task.Task, 0, len(s.containers))
	for id, c := range s.containers {
		if c != nil && (namespace == "" || id.Namespace == namespace) {
			list = append(list, c)
		}
	}
	s.mu.Unlock()
	sort.Slice(list, func(i, j int) bool { return list[i].ID().Container < list[j].ID().Container })
	return list, nil
}

func (s *Set) runtime(id task.ID, bundle string, o Options) *ociruntime.Runtime {
	root := o.Root
	if root == "" {
		root = s.cfg.RuntimeRoot
	}
	return &ociruntime.Runtime{
		Binary:        o.Binary,
		Root:          filepath.Join(root, id.Namespace),
		SystemdCgroup: o.SystemdCgroup,
		LogPath:       filepath.Join(bundle, "log.json"),
		Timeout:       callTimeout,
	}
}

// checkConfig refuses what cannot be created here.
func checkConfig(id task.ID, cfg task.CreateConfig) error {
	var bad error
	switch {
	case id.Container == "" || id.Namespace == "":
		bad = errors.New("the id and the namespace must be given")
	case !filepath.IsAbs(cfg.Bundle):
		bad = fmt.Errorf("bundle %q is not an absolute path", cfg.Bundle)
	}
	if bad != nil {
		return fmt.Errorf("create container %q: %w: %w", id.Container, bad, errdefs.ErrInvalidArgument)
	}
	return nil
}
