package runspec

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxEnvFile bounds an env file; the kernel takes no more as arguments anyway.
const maxEnvFile = 4 << 20

// ParseBytes reads a size such as "64m", "1.5g", "512KiB" or "1048576" as bytes.
// Units are powers of 1024.
func ParseBytes(s string) (int64, error) {
	text := strings.TrimSpace(strings.ToLower(s))
	text = strings.TrimSuffix(strings.TrimSuffix(text, "ib"), "b")
	shift := 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte("kmgtp", text[n-1]); i >= 0 {
			shift = 10 * (i + 1)
			text = strings.TrimSpace(text[:n-1])
		}
	}
	bad := fmt.Errorf("invalid size %q (use bytes or a unit: 512k, 64m, 2g)", s)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64>>shift {
			return 0, bad
		}
		return n << shift, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(f) || f < 0 {
		return 0, bad
	}
	f *= float64(int64(1) << shift)
	if f >= math.MaxInt64 {
		return 0, bad
	}
	return int64(f), nil
}

// ParseEnv completes "KEY" with the value of the caller's environment, as
// docker does, and checks the form of the rest. A KEY that is not set is left out.
func ParseEnv(list []string) ([]string, error) {
	var out []string
	for _, e := range list {
		key, _, ok := strings.Cut(e, "=")
		if key == "" || strings.IndexByte(e, 0) >= 0 {
			return nil, fmt.Errorf("invalid environment variable %q (use KEY=value or KEY)", e)
		}
		if ok {
			out = append(out, e)
		} else if v, set := os.LookupEnv(key); set {
			out = append(out, key+"="+v)
		}
	}
	return out, nil
}

// ReadEnvFile reads one variable a line; empty lines and lines that start with
// "#" do not count.
func ReadEnvFile(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("env file: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("env file: %w", err)
	} else if st.Size() > maxEnvFile {
		return nil, fmt.Errorf("env file %q: larger than %d bytes", name, maxEnvFile)
	}
	var list []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxEnvFile)
	for lines.Scan() {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("env file %q: %w", name, err)
	}
	env, err := ParseEnv(list)
	if err != nil {
		return nil, fmt.Errorf("env file %q: %w", name, err)
	}
	return env, nil
}

// ParseLabels reads "key=value" pairs. "key" alone has the value bare: docker
// means "", containerd's own tool means "true".
func ParseLabels(list []string, bare string) (map[string]string, error) {
	labels := make(map[string]string, len(list))
	for _, l := range list {
		key, value, ok := strings.Cut(l, "=")
		if key == "" {
			return nil, fmt.Errorf("invalid label %q (use key=value)", l)
		}
		if !ok {
			value = bare
		}
		labels[key] = value
	}
	return labels, nil
}

// ParseUlimit reads docker's "name=soft[:hard]", -1 for no limit.
func ParseUlimit(s string) (specs.POSIXRlimit, error) {
	name, limits, ok := strings.Cut(s, "=")
	kind := "RLIMIT_" + strings.ToUpper(name)
	if !ok || !knownRlimit(kind) {
		return specs.POSIXRlimit{}, fmt.Errorf("invalid ulimit %q (use name=soft[:hard], e.g. nofile=1024:4096)", s)
	}
	return ParseRlimit(kind, limits)
}

// ParseRlimit reads "soft[:hard]" for a limit such as "RLIMIT_NOFILE".
func ParseRlimit(kind, s string) (specs.POSIXRlimit, error) {
	soft, hard, ok := strings.Cut(s, ":")
	if !ok {
		hard = soft
	}
	lo, err := parseLimit(soft)
	if err == nil {
		var hi uint64
		if hi, err = parseLimit(hard); err == nil && lo <= hi {
			return specs.POSIXRlimit{Type: kind, Soft: lo, Hard: hi}, nil
		}
	}
	return specs.POSIXRlimit{}, fmt.Errorf("invalid limit %q for %s (use soft[:hard], soft not above hard)", s, kind)
}

func parseLimit(s string) (uint64, error) {
	if s == "-1" || s == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func knownRlimit(kind string) bool {
	switch kind {
	case "RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS",
		"RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC",
		"RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK":
		return true
	}
	return false
}

// ParseDevice reads "host[:container[:access]]".
func ParseDevice(s string) (Device, error) {
	parts := strings.Split(s, ":")
	d := Device{Host: parts[0], Container: parts[0], Access: "rwm"}
	ok := len(parts) <= 3 && path.IsAbs(d.Host)
	switch {
	case len(parts) == 2 && isAccess(parts[1]):
		d.Access = parts[1]
	case len(parts) >= 2:
		d.Container = parts[1]
	}
	if len(parts) == 3 {
		d.Access = parts[2]
	}
	if !ok || !path.IsAbs(d.Container) || !isAccess(d.Access) {
		return Device{}, fmt.Errorf("invalid device %q (use /dev/host[:/dev/container[:rwm]])", s)
	}
	return d, nil
}

func isAccess(s string) bool {
	return s != "" && len(s) <= 3 && strings.Trim(s, "rwm") == ""
}

// ParseNamespace reads "type:path", the namespace to join.
func ParseNamespace(s string) (specs.LinuxNamespace, error) {
	kind, file, ok := strings.Cut(s, ":")
	switch ns := specs.LinuxNamespaceType(kind); ns {
	case specs.PIDNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.MountNamespace,
		specs.UserNamespace, specs.IPCNamespace, specs.CgroupNamespace, specs.TimeNamespace:
		if ok && path.IsAbs(file) {
			return specs.LinuxNamespace{Type: ns, Path: file}, nil
		}
	}
	return specs.LinuxNamespace{}, fmt.Errorf("invalid namespace %q (use type:/path, e.g. network:/run/netns/blue)", s)
}

// ParseSignal reads a signal by name, with or without "SIG", or by number.
func ParseSignal(s string) (unix.Signal, error) {
	name := strings.ToUpper(s)
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name = strings.TrimPrefix(name, "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	// What libc leaves free for programs is 34 to 64.
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		return rtSignal(s, 34, rest)
	}
	if rest, ok := strings.CutPrefix(name, "RTMAX"); ok {
		return rtSignal(s, 64, rest)
	}
	return 0, fmt.Errorf("unknown signal %q (use a name like TERM or a number from 1 to 64)", s)
}

func rtSignal(s string, base int, offset string) (unix.Signal, error) {
	n := 0
	if offset != "" {
		var err error
		if n, err = strconv.Atoi(offset); err != nil {
			return 0, fmt.Errorf("unknown signal %q (use RTMIN+n or RTMAX-n)", s)
		}
	}
	if base += n; base < 34 || base > 64 {
		return 0, fmt.Errorf("unknown signal %q (real-time signals are 34 to 64)", s)
	}
	return unix.Signal(base), nil
}

// CheckID refuses what containerd does not take as the name of a container: at
// most 76 letters and digits, with single ".", "-" or "_" between them.
func CheckID(id string) error {
	const way = "use letters and digits, with single '.', '-' or '_' between them, at most 76"
	if id == "" || len(id) > 76 {
		return fmt.Errorf("invalid name %q (%s)", id, way)
	}
	joint := true
	for _, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (joint || c != '.' && c != '-' && c != '_') {
			return fmt.Errorf("invalid name %q (%s)", id, way)
		}
		joint = !letter
	}
	if joint {
		return fmt.Errorf("invalid name %q (%s)", id, way)
	}
	return nil
}
