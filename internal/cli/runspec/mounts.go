package runspec

import (
	"encoding/csv"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ParseVolume reads docker's "source:destination[:options]". The source is a
// directory or file that exists; a named volume is not known here.
func ParseVolume(s string) (specs.Mount, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return specs.Mount{}, fmt.Errorf("invalid volume %q (use /host/path:/container/path[:ro])", s)
	}
	m := specs.Mount{Type: "bind", Source: parts[0], Destination: parts[1]}
	if !strings.HasPrefix(m.Source, "/") && !strings.HasPrefix(m.Source, ".") {
		return specs.Mount{}, fmt.Errorf("volume %q: named volumes are not supported (give a path: /%s or ./%s)", s, m.Source, m.Source)
	}
	var options []string
	if len(parts) == 3 {
		options = strings.Split(parts[2], ",")
	}
	for _, o := range options {
		if !knownVolumeOption(o) {
			return specs.Mount{}, fmt.Errorf("volume %q: unknown option %q (ro, rw, nosuid, nodev, noexec, or a propagation such as rslave)", s, o)
		}
	}
	m.Options = bindOptions(options)
	return finishMount(m, s)
}

func knownVolumeOption(o string) bool {
	switch o {
	case "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "bind", "rbind":
		return true
	}
	return isPropagation(o)
}

func isPropagation(o string) bool {
	switch o {
	case "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable":
		return true
	}
	return false
}

// bindOptions completes the options of a bind mount: it is recursive and
// private unless the user says otherwise.
func bindOptions(options []string) []string {
	if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
		options = append([]string{"rbind"}, options...)
	}
	if !slices.ContainsFunc(options, isPropagation) {
		options = append(options, "rprivate")
	}
	return options
}

// ParseMount reads both docker's and containerd's form of --mount:
// "type=bind,src=/a,dst=/b,readonly" and "type=bind,src=/a,dst=/b,options=rbind:ro".
func ParseMount(s string) (specs.Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return specs.Mount{}, fmt.Errorf("invalid mount %q: %w (use type=bind,src=/host,dst=/container)", s, err)
	}
	m := specs.Mount{Type: "bind"}
	for _, field := range fields {
		key, value, has := strings.Cut(field, "=")
		if err := setMountField(&m, strings.ToLower(key), value, has); err != nil {
			return specs.Mount{}, fmt.Errorf("mount %q: %w", s, err)
		}
	}
	switch m.Type {
	case "bind":
		m.Options = bindOptions(m.Options)
	case "tmpfs":
		if m.Source == "" {
			m.Source = "tmpfs"
		}
	case "volume":
		return specs.Mount{}, fmt.Errorf("mount %q: named volumes are not supported (use type=bind with a path)", s)
	}
	return finishMount(m, s)
}

func setMountField(m *specs.Mount, key, value string, has bool) error {
	switch key {
	case "type":
		m.Type = value
	case "source", "src":
		m.Source = value
	case "target", "destination", "dst":
		m.Destination = value
	case "options":
		m.Options = append(m.Options, strings.Split(value, ":")...)
	case "readonly", "ro":
		on := true
		if has {
			var err error
			if on, err = strconv.ParseBool(value); err != nil {
				return fmt.Errorf("invalid value %q of %s (true or false)", value, key)
			}
		}
		if on {
			m.Options = append(m.Options, "ro")
		}
	case "bind-propagation":
		if !isPropagation(value) {
			return fmt.Errorf("unknown propagation %q (rprivate, rslave, rshared, …)", value)
		}
		m.Options = append(m.Options, value)
	case "tmpfs-size":
		n, err := ParseBytes(value)
		if err != nil {
			return err
		}
		m.Options = append(m.Options, "size="+strconv.FormatInt(n, 10))
	case "tmpfs-mode":
		if _, err := strconv.ParseUint(value, 8, 32); err != nil {
			return fmt.Errorf("invalid tmpfs-mode %q (use octal, e.g. 1777)", value)
		}
		m.Options = append(m.Options, "mode="+value)
	default:
		return fmt.Errorf("unknown field %q (type, src, dst, readonly, options, bind-propagation, tmpfs-size, tmpfs-mode)", key)
	}
	return nil
}

// ParseTmpfs reads docker's "destination[:options]".
func ParseTmpfs(s string) (specs.Mount, error) {
	dst, opts, _ := strings.Cut(s, ":")
	m := specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: dst, Options: []string{"noexec", "nosuid", "nodev"}}
	if opts != "" {
		for _, o := range strings.Split(opts, ",") {
			// A later "exec" takes the default "noexec" away.
			m.Options = slices.DeleteFunc(m.Options, func(have string) bool { return have == "no"+o })
			m.Options = append(m.Options, o)
		}
	}
	return finishMount(m, s)
}

// finishMount checks the paths of a mount and makes the source absolute.
func finishMount(m specs.Mount, s string) (specs.Mount, error) {
	if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
		return specs.Mount{}, fmt.Errorf("mount %q: destination %q must be an absolute path below /", s, m.Destination)
	}
	m.Destination = path.Clean(m.Destination)
	if m.Type != "bind" {
		return m, nil
	}
	if m.Source == "" {
		return specs.Mount{}, fmt.Errorf("mount %q: a source is missing (src=/host/path)", s)
	}
	abs, err := filepath.Abs(m.Source)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %q: %w", s, err)
	}
	if _, err := os.Stat(abs); err != nil {
		if os.IsNotExist(err) {
			return specs.Mount{}, fmt.Errorf("mount %q: source %s does not exist (create it first)", s, abs)
		}
		return specs.Mount{}, fmt.Errorf("mount %q: %w", s, err)
	}
	m.Source = abs
	return m, nil
}
