package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/speccheck"
)

const (
	defaultConfigFile = "/etc/berth/berthd.toml"
	// maxConfigSize is far more than a configuration has.
	maxConfigSize = 1 << 20
)

// config is the configuration file. Its comments go into "config default".
type config struct {
	Root        string            `toml:"root" comment:"Images, snapshots and records; survives a reboot."`
	State       string            `toml:"state" comment:"Bundles and sockets; does not."`
	Temp        string            `toml:"temp" comment:"Temporary files; empty for TMPDIR or /tmp. It is made if need be."`
	OOMScore    int               `toml:"oom_score" comment:"The daemon's oom_score_adj, -1000 to 1000; 0 leaves it as it is. Containers do not inherit a negative one."`
	Cgroup      string            `toml:"cgroup" comment:"The cgroup that the daemon moves itself to, such as /berth; empty leaves it where it is."`
	GRPC        grpcConfig        `toml:"grpc" comment:"The API's socket. Shims send events to the same path with \".ttrpc\" after it."`
	TCP         tcpConfig         `toml:"tcp" comment:"The API over TCP, for clients with certificates; they are root on this machine."`
	Log         logConfig         `toml:"log"`
	Shim        shimConfig        `toml:"shim" comment:"Berth's shim, which keeps containers."`
	SpecCheck   specCheckConfig   `toml:"speccheck" comment:"What is done about specs that a runtime or the host would ignore in part; see docs/speccheck.md."`
	Snapshotter snapshotterConfig `toml:"snapshotter"`
	Transfer    transferConfig    `toml:"transfer" comment:"Pulls, pushes and imports."`
	GC          gcConfig          `toml:"gc" comment:"When what nobody refers to any more is removed."`
	Events      eventsConfig      `toml:"events"`
	Debug       debugConfig       `toml:"debug"`

	StreamProcessors map[string]streamProcessor `toml:"stream_processors" comment:"Programs that turn layers of unusual media types into common ones, a table for each."`

	// warnings are for the log when the daemon starts.
	warnings []string
}

type grpcConfig struct {
	Address string `toml:"address" comment:"Empty for \"berth.sock\" in the state directory."`
	UID     int    `toml:"uid" comment:"Owner of the socket, which has mode 0660."`
	GID     int    `toml:"gid"`
}

type tcpConfig struct {
	Address    string `toml:"address" comment:"host:port; empty for nowhere. It needs ca, cert and key."`
	CA         string `toml:"ca" comment:"PEM file with the authorities of the clients' certificates."`
	Cert       string `toml:"cert" comment:"PEM files with the daemon's certificate and key."`
	Key        string `toml:"key"`
	CommonName string `toml:"common_name" comment:"If set, the name in the certificate of the only client that is let in."`
}

type logConfig struct {
	Level  string `toml:"level" comment:"debug, info, warn, error"`
	Format string `toml:"format" comment:"text, json"`
}

type shimConfig struct {
	Binary    string   `toml:"binary" comment:"Empty for the one beside berthd, else from PATH."`
	Runtimes  []string `toml:"runtimes" comment:"Names of runtimes that mean this shim. Other names mean other makers' shims."`
	Sharing   string   `toml:"sharing" comment:"One shim process for a \"namespace\" or for a \"container\"."`
	Linger    duration `toml:"linger" comment:"How long a shim stays when its last container is gone; \"0s\" leaves it to the shim."`
	SocketDir string   `toml:"socket_dir" comment:"Empty for \"s\" in the state directory, or /run/berth/s where that path is too long."`
	Debug     bool     `toml:"debug" comment:"Make shims log more."`
}

type specCheckConfig struct {
	Classes  map[speccheck.Class]speccheck.Action            `toml:"classes" comment:"\"refuse\", \"warn\" or \"allow\" for a class, such as idmap = \"warn\"."`
	Runtimes map[string]map[speccheck.Class]speccheck.Action `toml:"runtimes" comment:"The same for one runtime, such as [speccheck.runtimes.crun]."`
}

type snapshotterConfig struct {
	Default string `toml:"default" comment:"overlayfs, native; empty for overlayfs where it works."`

	Proxies map[string]proxySnapshotter `toml:"proxies" comment:"Snapshotters that other processes serve, such as [snapshotter.proxies.stargz]."`
}

type proxySnapshotter struct {
	Address      string            `toml:"address" comment:"Its unix socket."`
	Platform     string            `toml:"platform" comment:"Empty for the host's."`
	Capabilities []string          `toml:"capabilities"`
	Exports      map[string]string `toml:"exports"`
}

type streamProcessor struct {
	Accepts []string `toml:"accepts" comment:"Media types that it takes."`
	Returns string   `toml:"returns" comment:"The media type that it gives."`
	Path    string   `toml:"path" comment:"The program: layer on standard input, result on standard output."`
	Args    []string `toml:"args"`
	Env     []string `toml:"env"`
}

type transferConfig struct {
	HostsDir     string `toml:"hosts_dir" comment:"Configuration of registry hosts, a directory for each; it need not exist."`
	MaxDownloads int    `toml:"max_concurrent_downloads" comment:"Layers at once, over all pulls."`
	MaxUploads   int    `toml:"max_concurrent_uploads" comment:"Layers at once, over all pushes."`
	MaxUnpacks   int    `toml:"max_concurrent_unpacks" comment:"Layers extracted at once; 0 for the number of CPUs, at most 4."`
}

type gcConfig struct {
	PauseThreshold    float64  `toml:"pause_threshold" comment:"Share of time in which a collection may stop changes; 0 for 0.02."`
	DeletionThreshold int      `toml:"deletion_threshold" comment:"Collect at once after so many deletions; 0 lets them wait for their turn."`
	MutationThreshold int      `toml:"mutation_threshold" comment:"Collect after so many changes even if nothing was deleted; 0 for 100, -1 for never."`
	ScheduleDelay     duration `toml:"schedule_delay" comment:"From a request to the collection."`
	StartupDelay      duration `toml:"startup_delay" comment:"From the start to the first collection; \"0s\" for 100ms."`
}

type eventsConfig struct {
	Queue int `toml:"queue" comment:"Events that may wait for a subscriber before it is cut off."`
}

type debugConfig struct {
	Address string `toml:"address" comment:"Serve Go's pprof on this unix socket, for root only; empty for nowhere."`
}

// duration is written as "1m30s".
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration such as \"10s\"", text)
	}
	*d = duration(v)
	return nil
}

func defaultConfig() *config {
	return &config{
		Root:  engine.DefaultRoot,
		State: engine.DefaultState,
		Log:   logConfig{Level: "info", Format: "text"},
		Shim: shimConfig{
			Runtimes: []string{"io.containerd.berth.v2", "io.containerd.runc.v2"},
			Sharing:  "namespace",
		},
		Transfer: transferConfig{HostsDir: "/etc/containerd/certs.d", MaxDownloads: 3, MaxUploads: 3},
		GC: gcConfig{
			PauseThreshold: 0.02, MutationThreshold: 100, StartupDelay: duration(100 * time.Millisecond),
		},
		Events:           eventsConfig{Queue: 16384},
		Snapshotter:      snapshotterConfig{Proxies: map[string]proxySnapshotter{}},
		StreamProcessors: map[string]streamProcessor{},
		SpecCheck: specCheckConfig{
			Classes: map[speccheck.Class]speccheck.Action{}, Runtimes: map[string]map[speccheck.Class]speccheck.Action{},
		},
	}
}

// effectiveConfig is the default, under the file, under the flags.
func effectiveConfig(c *cli.Command) (*config, error) {
	cfg := defaultConfig()
	path, required := defaultConfigFile, false
	if c.IsSet("config") {
		path, required = c.String("config"), true
	}
	if err := cfg.read(path, required); err != nil {
		return nil, err
	}
	for name, field := range map[string]*string{
		"root": &cfg.Root, "state": &cfg.State, "address": &cfg.GRPC.Address,
		"log-level": &cfg.Log.Level, "log-format": &cfg.Log.Format,
	} {
		if c.IsSet(name) {
			*field = c.String(name)
		}
	}
	return cfg, cfg.complete()
}

// read takes a file over the defaults.
func (c *config) read(path string, required bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return nil
	}
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	data, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return fmt.Errorf("config %s: %w", path, err)
	}
	if len(data) > maxConfigSize {
		return fmt.Errorf("config %s: larger than %d bytes", path, maxConfigSize)
	}
	return c.parse(path, data)
}

func (c *config) parse(path string, data []byte) error {
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		e := unknown.Errors[0]
		line, column := e.Position()
		return fmt.Errorf("config %s:%d:%d: unknown key %q (berthd config default lists the keys)", path, line, column, strings.Join(e.Key(), "."))
	case errors.As(err, &syntax):
		line, column := syntax.Position()
		return fmt.Errorf("config %s:%d:%d: %s", path, line, column, strings.TrimPrefix(syntax.Error(), "toml: "))
	default:
		return fmt.Errorf("config %s: %w", path, err)
	}
}

// complete makes paths absolute and refuses values that berthd would trip over
// later.
func (c *config) complete() error {
	for name, path := range map[string]*string{
		"root": &c.Root, "state": &c.State, "grpc.address": &c.GRPC.Address, "shim.binary": &c.Shim.Binary,
		"shim.socket_dir": &c.Shim.SocketDir, "temp": &c.Temp, "debug.address": &c.Debug.Address,
		"tcp.ca": &c.TCP.CA, "tcp.cert": &c.TCP.Cert, "tcp.key": &c.TCP.Key,
	} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("config: %s %q: %w", name, *path, err)
		}
		*path = abs
	}
	if c.TCP.Address != "" && (c.TCP.CA == "" || c.TCP.Cert == "" || c.TCP.Key == "") {
		return errors.New("config: tcp.address needs tcp.ca, tcp.cert and tcp.key: clients are served with certificates only")
	}
	if _, err := parseLevel(c.Log.Level); err != nil {
		return fmt.Errorf("config: log.level %q: want debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("config: log.format %q: want text or json", c.Log.Format)
	}
	if c.Shim.Sharing != "namespace" && c.Shim.Sharing != "container" {
		return fmt.Errorf("config: shim.sharing %q: want namespace or container", c.Shim.Sharing)
	}
	if err := (speccheck.Policy{Classes: c.SpecCheck.Classes, Runtimes: c.SpecCheck.Runtimes}).Check(); err != nil {
		return fmt.Errorf("config: speccheck: %w", err)
	}
	if c.OOMScore < -1000 || c.OOMScore > 1000 {
		return fmt.Errorf("config: oom_score %d: want -1000 to 1000", c.OOMScore)
	}
	for id, p := range c.StreamProcessors {
		if p.Path == "" || p.Returns == "" || len(p.Accepts) == 0 {
			return fmt.Errorf("config: stream processor %q: want accepts, returns and path", id)
		}
	}
	for name, value := range map[string]int{
		"transfer.max_concurrent_downloads": c.Transfer.MaxDownloads, "transfer.max_concurrent_uploads": c.Transfer.MaxUploads,
		"transfer.max_concurrent_unpacks": c.Transfer.MaxUnpacks, "events.queue": c.Events.Queue,
		"gc.deletion_threshold": c.GC.DeletionThreshold, "grpc.uid": c.GRPC.UID, "grpc.gid": c.GRPC.GID,
	} {
		if value < 0 {
			return fmt.Errorf("config: %s %d: want 0 or more", name, value)
		}
	}
	return nil
}

// address is the API's socket.
func (c *config) address() string {
	if c.GRPC.Address != "" {
		return c.GRPC.Address
	}
	return filepath.Join(c.State, engine.SocketName)
}

func parseLevel(s string) (level slog.Level, err error) {
	switch s {
	case "debug", "info", "warn", "error":
		err = level.UnmarshalText([]byte(s))
		return level, err
	}
	return level, fmt.Errorf("unknown level %q", s)
}

// write prints the configuration as a file that read takes.
func (c *config) write(w io.Writer) error {
	enc := toml.NewEncoder(w)
	enc.SetIndentTables(false)
	return enc.Encode(c)
}

// engineConfig is what the engine gets of it.
func (c *config) engineConfig(log *slog.Logger) engine.Config {
	return engine.Config{
		Root:                   c.Root,
		State:                  c.State,
		Address:                c.GRPC.Address,
		ShimBinary:             c.Shim.Binary,
		OwnRuntimes:            c.Shim.Runtimes,
		Sharing:                c.Shim.Sharing,
		Linger:                 time.Duration(c.Shim.Linger),
		SocketDir:              c.Shim.SocketDir,
		DebugShims:             c.Shim.Debug,
		SpecCheck:              speccheck.Policy{Classes: c.SpecCheck.Classes, Runtimes: c.SpecCheck.Runtimes},
		Snapshotter:            c.Snapshotter.Default,
		HostDir:                c.Transfer.HostsDir,
		MaxConcurrentDownloads: c.Transfer.MaxDownloads,
		MaxConcurrentUploads:   c.Transfer.MaxUploads,
		MaxConcurrentUnpacks:   c.Transfer.MaxUnpacks,
		GC: engine.GCConfig{
			PauseThreshold:    c.GC.PauseThreshold,
			DeletionThreshold: c.GC.DeletionThreshold,
			MutationThreshold: c.GC.MutationThreshold,
			ScheduleDelay:     time.Duration(c.GC.ScheduleDelay),
			StartupDelay:      time.Duration(c.GC.StartupDelay),
		},
		EventQueue: c.Events.Queue,
		Proxies:    c.Snapshotter.engineProxies(),
		Log:        log,
	}
}

func (c snapshotterConfig) engineProxies() map[string]engine.ProxySnapshotter {
	proxies := make(map[string]engine.ProxySnapshotter, len(c.Proxies))
	for name, p := range c.Proxies {
		proxies[name] = engine.ProxySnapshotter(p)
	}
	return proxies
}
