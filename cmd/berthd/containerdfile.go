package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/platforms"
)

// Tables of containerd's configuration that Berth knows.
const (
	serverGRPC  = "io.containerd.server.v1.grpc"
	serverTCP   = "io.containerd.server.v1.grpc-tcp"
	serverTTRPC = "io.containerd.server.v1.ttrpc"
	serverDebug = "io.containerd.server.v1.debug"
	gcScheduler = "io.containerd.gc.v1.scheduler"
	transfers   = "io.containerd.transfer.v1.local"
	shimManager = "io.containerd.shim.v1.manager"
)

// setting is a key of a plugin's table and where its value goes.
type setting struct {
	table, key string
	field      any // *string, *int, *float64, *duration
}

// settings are the keys that are applied.
func (c *config) settings() []setting {
	return []setting{
		{serverGRPC, "address", &c.GRPC.Address},
		{serverGRPC, "uid", &c.GRPC.UID},
		{serverGRPC, "gid", &c.GRPC.GID},
		{serverTCP, "address", &c.TCP.Address},
		{serverTCP, "tls_ca", &c.TCP.CA},
		{serverTCP, "tls_cert", &c.TCP.Cert},
		{serverTCP, "tls_key", &c.TCP.Key},
		{serverTCP, "tls_common_name", &c.TCP.CommonName},
		{serverDebug, "address", &c.Debug.Address},
		{gcScheduler, "pause_threshold", &c.GC.PauseThreshold},
		{gcScheduler, "deletion_threshold", &c.GC.DeletionThreshold},
		{gcScheduler, "mutation_threshold", &c.GC.MutationThreshold},
		{gcScheduler, "schedule_delay", &c.GC.ScheduleDelay},
		{gcScheduler, "startup_delay", &c.GC.StartupDelay},
		{transfers, "max_concurrent_downloads", &c.Transfer.MaxDownloads},
		{transfers, "max_concurrent_uploaded_layers", &c.Transfer.MaxUploads},
		{transfers, "max_concurrent_unpacks", &c.Transfer.MaxUnpacks},
		{transfers, "config_path", &c.Transfer.HostsDir},
		{shimManager, "socket_dir", &c.Shim.SocketDir},
	}
}

// fromContainerd applies what Berth knows of a containerd configuration, which
// the library has brought to its newest version, and says in a line for each table what
// it does not know. A value that asks for nothing (empty, 0, false) is not
// worth a line. A plugin that is required and not there is an error, as with
// containerd.
func fromContainerd(file *srvconfig.Config) (*config, []string, error) {
	cfg := defaultConfig()
	cfg.Root, cfg.State = file.Root, file.State
	if file.Debug.Level != "" {
		cfg.Log.Level = containerdLevel(file.Debug.Level)
	}
	if file.Debug.Format != "" {
		cfg.Log.Format = file.Debug.Format
	}
	cfg.Temp, cfg.OOMScore, cfg.Cgroup = file.TempDir, file.OOMScore, file.Cgroup.Path
	for id, p := range file.StreamProcessors {
		cfg.StreamProcessors[id] = streamProcessor(p)
	}
	for name, p := range file.ProxyPlugins {
		if isSnapshotter(p) {
			cfg.Snapshotter.Proxies[name] = proxySnapshotter{
				Address: p.Address, Platform: p.Platform, Capabilities: p.Capabilities, Exports: p.Exports,
			}
		}
	}
	known := make(map[string]map[string]bool)
	for _, s := range cfg.settings() {
		if known[s.table] == nil {
			known[s.table] = make(map[string]bool)
		}
		known[s.table][s.key] = true
		if err := s.take(file.Plugins); err != nil {
			return nil, nil, err
		}
	}
	unknown := unknownTop(file)
	for _, table := range slices.Sorted(maps.Keys(file.Plugins)) {
		if keys := unknownKeys(table, file.Plugins[table], known[table], cfg); len(keys) > 0 {
			unknown = append(unknown, fmt.Sprintf("plugins.%q: not known and not applied: %s", table, strings.Join(keys, ", ")))
		}
	}
	return cfg, unknown, cfg.requiredThere(file.RequiredPlugins)
}

// take sets the field if the file has the key.
func (s setting) take(plugins map[string]any) error {
	table, _ := plugins[s.table].(map[string]any)
	value, ok := table[s.key]
	if !ok {
		return nil
	}
	good := false
	switch field := s.field.(type) {
	case *string:
		*field, good = value.(string)
	case *int:
		switch n := value.(type) {
		case int64:
			*field, good = int(n), true
		case int:
			*field, good = n, true
		}
	case *float64:
		*field, good = value.(float64)
	case *duration:
		var text string
		if text, good = value.(string); good {
			if err := field.UnmarshalText([]byte(text)); err != nil {
				return fmt.Errorf("plugins.%q.%s: %w", s.table, s.key, err)
			}
		}
	}
	if !good {
		return fmt.Errorf("plugins.%q.%s: %v has the wrong type", s.table, s.key, value)
	}
	return nil
}

// harmless are values that Berth satisfies without a setting for them.
func harmless(table, key string, value any, cfg *config) bool {
	switch table + "/" + key {
	case serverGRPC + "/max_recv_message_size", serverGRPC + "/max_send_message_size",
		serverTCP + "/max_recv_message_size", serverTCP + "/max_send_message_size":
		return fmt.Sprint(value) == fmt.Sprint(defaults.DefaultMaxRecvMsgSize)
	case serverTTRPC + "/address":
		return value == cfg.GRPC.Address+".ttrpc"
	case serverTTRPC + "/uid", serverTTRPC + "/gid":
		return fmt.Sprint(value) == "0"
	case "io.containerd.metadata.v1.bolt/content_sharing_policy":
		return value == "shared"
	case "io.containerd.service.v1.diff-service/default":
		return reflect.DeepEqual(value, []any{"walking"})
	case "io.containerd.monitor.container.v1.restart/interval", "io.containerd.internal.v1.restart/interval":
		return true // restarts follow exits, not a clock
	case "io.containerd.runtime.v2.task/platforms":
		return reflect.DeepEqual(value, []any{platforms.DefaultString()})
	}
	return zero(value)
}

// zero says that a value asks for nothing.
func zero(value any) bool {
	v := reflect.ValueOf(value)
	switch v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Map:
		for _, key := range v.MapKeys() {
			if !zero(v.MapIndex(key).Interface()) {
				return false
			}
		}
		return true
	case reflect.Slice:
		return v.Len() == 0
	case reflect.String:
		return v.String() == "" || v.String() == "0s"
	}
	return v.IsZero()
}

func unknownKeys(table string, value any, known map[string]bool, cfg *config) []string {
	keys, ok := value.(map[string]any)
	if !ok {
		return []string{"a value that is no table"}
	}
	var unknown []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !known[key] && !harmless(table, key, keys[key], cfg) {
			unknown = append(unknown, key)
		}
	}
	return unknown
}

// isSnapshotter says that a proxy plugin is one of the kind that Berth takes.
func isSnapshotter(p srvconfig.ProxyPlugin) bool {
	return p.Type == "snapshot" || p.Type == "io.containerd.snapshotter.v1"
}

// unknownTop names what of the file is outside of plugins and not applied.
func unknownTop(file *srvconfig.Config) []string {
	var unknown []string
	add := func(set bool, format string, args ...any) {
		if set {
			unknown = append(unknown, fmt.Sprintf(format, args...)+": not known and not applied")
		}
	}
	add(file.Debug.LogTraceID, "debug.log_trace_id")
	for _, name := range slices.Sorted(maps.Keys(file.ProxyPlugins)) {
		p := file.ProxyPlugins[name]
		add(!isSnapshotter(p), "proxy_plugins.%q of type %q", name, p.Type)
	}
	add(len(file.Timeouts) > 0, "timeouts %s", strings.Join(slices.Sorted(maps.Keys(file.Timeouts)), ", "))
	for _, name := range file.DisabledPlugins {
		// What is not there is disabled as asked.
		add(!strings.HasPrefix(name, "io.containerd.cri.") && hasPart(name), "disabled_plugins %q, which cannot be left out", name)
	}
	return unknown
}

// parts are the plugins, by URI, that a configuration may require.
var parts = []string{
	"io.containerd.content.v1.content", "io.containerd.metadata.v1.bolt", "io.containerd.gc.v1.scheduler",
	"io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.native", "io.containerd.differ.v1.walking",
	"io.containerd.event.v1.exchange", "io.containerd.lease.v1.manager", "io.containerd.mount-manager.v1.bolt",
	"io.containerd.monitor.container.v1.restart", "io.containerd.runtime.v2.task", "io.containerd.streaming.v1.manager", "io.containerd.transfer.v1.local",
	"io.containerd.sandbox.store.v1.local", serverGRPC, serverTCP, serverTTRPC, serverDebug, transfers, shimManager,
	"io.containerd.grpc.v1.containers", "io.containerd.grpc.v1.content", "io.containerd.grpc.v1.diff", "io.containerd.grpc.v1.events",
	"io.containerd.grpc.v1.healthcheck", "io.containerd.grpc.v1.images", "io.containerd.grpc.v1.introspection", "io.containerd.grpc.v1.leases",
	"io.containerd.grpc.v1.mounts", "io.containerd.grpc.v1.namespaces", "io.containerd.grpc.v1.sandboxes", "io.containerd.grpc.v1.snapshots",
	"io.containerd.grpc.v1.streaming", "io.containerd.grpc.v1.tasks", "io.containerd.grpc.v1.transfer", "io.containerd.grpc.v1.version",
}

func hasPart(uri string) bool { return slices.Contains(parts, uri) }

func (c *config) requiredThere(required []string) error {
	for _, uri := range required {
		_, proxy := c.Snapshotter.Proxies[strings.TrimPrefix(uri, "io.containerd.snapshotter.v1.")]
		if !proxy && !hasPart(uri) {
			return fmt.Errorf("required_plugins: Berth has no %s; take it off the list if you can do without it", uri)
		}
	}
	return nil
}

// containerdLevel is Berth's nearest to a log level of containerd.
func containerdLevel(level string) string {
	switch level {
	case "trace":
		return "debug"
	case "fatal", "panic":
		return "error"
	case "warning":
		return "warn"
	}
	return level
}

// toContainerd is what Berth knows, as a containerd configuration.
func toContainerd(cfg *config) *srvconfig.Config {
	file := containerdDefaults()
	file.Version = version.ConfigVersion
	file.Root, file.State = cfg.Root, cfg.State
	file.DisabledPlugins, file.RequiredPlugins = []string{}, []string{}
	file.Debug.Level, file.Debug.Format = cfg.Log.Level, cfg.Log.Format
	for _, s := range cfg.settings() {
		table, _ := file.Plugins[s.table].(map[string]any)
		if table == nil {
			table = make(map[string]any)
			file.Plugins[s.table] = table
		}
		table[s.key] = reflect.ValueOf(s.field).Elem().Interface()
	}
	file.TempDir, file.OOMScore, file.Cgroup.Path = cfg.Temp, cfg.OOMScore, cfg.Cgroup
	for id, p := range cfg.StreamProcessors {
		file.StreamProcessors[id] = srvconfig.StreamProcessor(p)
	}
	for name, p := range cfg.Snapshotter.Proxies {
		file.ProxyPlugins[name] = srvconfig.ProxyPlugin{
			Type: "snapshot", Address: p.Address, Platform: p.Platform, Capabilities: p.Capabilities, Exports: p.Exports,
		}
	}
	file.Plugins[serverTTRPC] = map[string]any{"address": cfg.address() + ".ttrpc"}
	return file
}
