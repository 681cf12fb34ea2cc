package engine

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/storage"
	"github.com/berthd/berth/speccheck"
)

// Defaults of a Config.
const (
	DefaultRoot  = "/var/lib/berth"
	DefaultState = "/run/berth"
	// SocketName is the API's socket in the state directory.
	SocketName = "berth.sock"
)

// GCConfig is when garbage is collected.
type GCConfig = storage.GCConfig

// ProxySnapshotter is a snapshotter that another process serves.
type ProxySnapshotter = storage.ProxySnapshotter

// Config describes an engine. The zero value is that of the system's berthd.
type Config struct {
	// Root holds what survives a reboot: images, snapshots, records. It is
	// made 0700. Default /var/lib/berth.
	Root string
	// State holds what does not: bundles and sockets. It is made 0711. Default
	// /run/berth. Root and State are used by one process at a time.
	State string
	// Address is the path of the API's socket, and what shims are told of; the
	// engine itself listens on it only through Serve. Shims send their events to
	// Address + ".ttrpc", which is always served. Default "berth.sock" in State.
	Address string
	// SocketUID and SocketGID own the ttrpc socket; default: the user and group
	// of the process, which are also the only ones let in.
	SocketUID, SocketGID int

	// ShimBinary is Berth's shim. Default: beside the program's executable, else
	// from PATH.
	ShimBinary string
	// PublishBinary is what shims may execute to publish an event ("publish" is
	// its first argument). Default: the program's executable.
	PublishBinary string
	// OwnRuntimes are the runtime names that give Berth's shim. Default
	// io.containerd.berth.v2 and io.containerd.runc.v2.
	OwnRuntimes []string
	// Sharing says which containers share a shim process, where their
	// annotations do not: "namespace" (default) or "container".
	Sharing string
	// Linger is how long a shim stays when its last container is gone; 0 leaves
	// it to the shim.
	Linger time.Duration
	// SocketDir is where shims make their sockets, at most 42 characters.
	// Default "s" in State, or /run/berth/s where that is too long.
	SocketDir string
	// DebugShims makes shims log more.
	DebugShims bool

	// SpecCheck replaces what is done about specs that a runtime or the host would
	// ignore in part: by default they are refused, see docs/speccheck.md. It is
	// the administrator's alone; images and labels do not change it.
	SpecCheck speccheck.Policy

	// Snapshotter is the default snapshotter. Default overlayfs, or native where
	// overlay mounts do not work.
	Snapshotter string
	// Proxies are further snapshotters by their names, which other processes
	// serve.
	Proxies map[string]ProxySnapshotter
	// HostDir holds the configuration of registry hosts. Default
	// /etc/containerd/certs.d; it need not exist.
	HostDir string
	// MaxConcurrentDownloads and MaxConcurrentUploads bound the layers in
	// transfer. Default 3.
	MaxConcurrentDownloads, MaxConcurrentUploads int
	// MaxConcurrentUnpacks bounds the layers that are extracted at once. Default
	// the number of CPUs, at most 4.
	MaxConcurrentUnpacks int
	// GC is when garbage is collected.
	GC GCConfig

	// EventQueue is how many events may wait for one subscriber before it is cut
	// off. Default 16384.
	EventQueue int
	// Log receives what no caller is told. Default slog.Default.
	Log *slog.Logger
}

// complete fills in the defaults.
func (c Config) complete() (Config, error) {
	for _, p := range []struct {
		name  string
		path  *string
		value string
	}{
		{"root", &c.Root, DefaultRoot},
		{"state", &c.State, DefaultState},
	} {
		if *p.path == "" {
			*p.path = p.value
		}
		if !filepath.IsAbs(*p.path) {
			return c, fmt.Errorf("%s directory %q is not an absolute path: %w", p.name, *p.path, errdefs.ErrInvalidArgument)
		}
		*p.path = filepath.Clean(*p.path)
	}
	if c.Root == c.State {
		return c, fmt.Errorf("root and state are the same directory %s: %w", c.Root, errdefs.ErrInvalidArgument)
	}
	if c.Address == "" {
		c.Address = filepath.Join(c.State, SocketName)
	}
	if c.SocketUID == 0 {
		c.SocketUID = os.Geteuid()
	}
	if c.SocketGID == 0 {
		c.SocketGID = os.Getegid()
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, nil
}

// ttrpcAddress is where shims send their events.
func (c Config) ttrpcAddress() string { return c.Address + ".ttrpc" }
