package runspec

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fuzz runs a parser over hostile texts; what it takes must hold.
func fuzz(f *testing.F, seeds []string, check func(t *testing.T, s string)) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(check)
}

func FuzzParseBytes(f *testing.F) {
	fuzz(f, []string{"1g", "0.5m", "8191p", "1e3", "-1", "NaN"}, func(t *testing.T, s string) {
		if n, err := ParseBytes(s); err == nil && n < 0 {
			t.Errorf("%q: %d", s, n)
		}
	})
}

func FuzzParseEnv(f *testing.F) {
	fuzz(f, []string{"A=1", "A", "=", "A=\x00"}, func(t *testing.T, s string) {
		env, err := ParseEnv([]string{s})
		for _, e := range env {
			if key, _, ok := strings.Cut(e, "="); err == nil && (!ok || key == "" || strings.Contains(e, "\x00")) {
				t.Errorf("%q: %q", s, e)
			}
		}
	})
}

func FuzzReadEnvFile(f *testing.F) {
	fuzz(f, []string{"A=1\n# x\n\n B=2", "\x00", "="}, func(t *testing.T, s string) {
		name := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if env, err := ReadEnvFile(name); err == nil && slices.Contains(env, "") {
			t.Errorf("%q: %q", s, env)
		}
	})
}

func FuzzParseLabels(f *testing.F) {
	fuzz(f, []string{"a=b", "a", "=b"}, func(t *testing.T, s string) {
		if l, err := ParseLabels([]string{s}, "true"); err == nil && len(l) != 1 {
			t.Errorf("%q: %v", s, l)
		}
	})
}

func FuzzParseUlimit(f *testing.F) {
	fuzz(f, []string{"nofile=1:2", "nofile=-1", "core=unlimited:1", "x=1"}, func(t *testing.T, s string) {
		_, _ = ParseRlimit("RLIMIT_NOFILE", s)
		_, _ = parseLimit(s)
		if r, err := ParseUlimit(s); err == nil && (r.Soft > r.Hard || !knownRlimit(r.Type)) {
			t.Errorf("%q: %+v", s, r)
		}
	})
}

func FuzzParseDevice(f *testing.F) {
	fuzz(f, []string{"/dev/a", "/dev/a:/dev/b:rw", "/dev/a:rwm", "a/b=c", ":::"}, func(t *testing.T, s string) {
		if d, err := ParseDevice(s); err == nil && (!strings.HasPrefix(d.Host, "/") || !strings.HasPrefix(d.Container, "/") || d.Access == "") {
			t.Errorf("%q: %+v", s, d)
		}
		_ = IsCDI(s)
		_, _ = ParseGPU(s)
	})
}

func FuzzParseNamespace(f *testing.F) {
	fuzz(f, []string{"network:/run/netns/x", "moon:/x", "pid:"}, func(t *testing.T, s string) {
		if ns, err := ParseNamespace(s); err == nil && !strings.HasPrefix(ns.Path, "/") {
			t.Errorf("%q: %+v", s, ns)
		}
	})
}

func FuzzParseSignal(f *testing.F) {
	fuzz(f, []string{"TERM", "SIGRTMIN+3", "64", "RTMAX--1"}, func(t *testing.T, s string) {
		if n, err := ParseSignal(s); err == nil && (n < 1 || n > 64) {
			t.Errorf("%q: %d", s, n)
		}
	})
}

func FuzzParseMounts(f *testing.F) {
	fuzz(f, []string{"/tmp:/a:ro", "type=bind,src=/tmp,dst=/a", "/a:size=1m", "type=tmpfs,dst=/a/../..", "\"", "src=,dst=/"}, func(t *testing.T, s string) {
		v, errV := ParseVolume(s)
		m, errM := ParseMount(s)
		tm, errT := ParseTmpfs(s)
		for dst, err := range map[string]error{v.Destination: errV, m.Destination: errM, tm.Destination: errT} {
			if err == nil && (!strings.HasPrefix(dst, "/") || dst == "/" || strings.Contains(dst, "..") && filepath.Clean(dst) != dst) {
				t.Errorf("%q: destination %q", s, dst)
			}
		}
	})
}

func FuzzParseIDMaps(f *testing.F) {
	fuzz(f, []string{"0:100000:65536", "0:4294967294:1", "0:1:4294967295", "0:0:0", "0:1:2,2:3:1"}, func(t *testing.T, s string) {
		maps, err := ParseIDMaps(strings.Split(s, ","))
		if err != nil {
			return
		}
		for _, m := range maps {
			last := uint64(m.Size) - 1
			if m.Size == 0 || uint64(m.HostID)+last >= math.MaxUint32 || uint64(m.ContainerID)+last >= math.MaxUint32 {
				t.Errorf("%q: %+v", s, m)
			}
		}
		if _, ok := HostID(maps, 0); !ok {
			t.Errorf("%q: no root", s)
		}
	})
}

func FuzzParsePort(f *testing.F) {
	fuzz(f, []string{"80:80", "127.0.0.1:8000-8002:80-82/udp", "[::1]:1:1", "0:1", "1:65536", "1-65535:1-65535"}, func(t *testing.T, s string) {
		ports, err := ParsePort(s)
		for _, p := range ports {
			if err == nil && (p.Host == 0 || p.Container == 0 || p.Protocol == "") {
				t.Errorf("%q: %+v", s, p)
			}
		}
	})
}

func FuzzParseNames(f *testing.F) {
	fuzz(f, []string{"db:10.0.0.7", "db:::1", "10.0.0.1", "a.test", "ndots:2", "x\ny:1.1.1.1"}, func(t *testing.T, s string) {
		host, errH := ParseHost(s)
		server, errS := ParseDNS(s)
		domain, errD := ParseDomain(s)
		option, errO := ParseResolvOption(s)
		for text, err := range map[string]error{host: errH, server: errS, domain: errD, option: errO} {
			if err == nil && strings.ContainsAny(text, "\n\r #") {
				t.Errorf("%q: %q is more than one word of a resolver's file", s, text)
			}
		}
	})
}

func FuzzParseRestart(f *testing.F) {
	fuzz(f, []string{"always", "on-failure:3", "on-failure:", "no:1"}, func(t *testing.T, s string) {
		if r, err := ParseRestart(s); err == nil {
			if again, err := ParseRestart(r.String()); err != nil || again != r {
				t.Errorf("%q: %v, %v", s, again, err)
			}
		}
	})
}

func FuzzCheckID(f *testing.F) {
	fuzz(f, []string{"a", "a.b", "..", "a/b"}, func(t *testing.T, s string) {
		if CheckID(s) == nil && (strings.ContainsAny(s, "/\x00 ") || strings.HasPrefix(s, ".")) {
			t.Errorf("%q is taken", s)
		}
		_ = checkID(s)
	})
}

func FuzzReadSeccomp(f *testing.F) {
	fuzz(f, []string{`{"defaultAction":"SCMP_ACT_ALLOW"}`, `{"archMap":[]}`, `[]`, ``}, func(t *testing.T, s string) {
		name := filepath.Join(t.TempDir(), "profile")
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := readSeccomp(name); err == nil && p.DefaultAction == "" {
			t.Errorf("%q: no default action", s)
		}
	})
}

func FuzzCapNames(f *testing.F) {
	fuzz(f, []string{"CAP_CHOWN", "chown", "all", "CAP_CAP_CHOWN", "CAP_ALL"}, func(t *testing.T, s string) {
		names, err := capNames([]string{s})
		if err == nil && names[0] != "ALL" && !strings.HasPrefix(names[0], "CAP_") {
			t.Errorf("%q: %q", s, names)
		}
	})
}

// TestEveryParserIsFuzzed finds each function of this package that reads a
// user's text in the targets above.
func TestEveryParserIsFuzzed(t *testing.T) {
	targets, err := os.ReadFile("fuzz_test.go")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	parser := regexp.MustCompile(`(?m)^func ((?:[Pp]arse|[Rr]ead|Check|capN|IsCDI)\w*)\(`)
	n := 0
	for _, name := range files {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range parser.FindAllSubmatch(source, -1) {
			n++
			if !bytes.Contains(targets, append(m[1], '(')) {
				t.Errorf("%s: no fuzz target calls %s", name, m[1])
			}
		}
	}
	if n < 20 {
		t.Errorf("%d parsers found", n)
	}
}

// TestParseLists are the forms that people type.
func TestParseLists(t *testing.T) {
	ports, err := ParsePort("127.0.0.1:8000-8001:80-81/udp")
	if err != nil || len(ports) != 2 || ports[1].Host != 8001 || ports[1].Container != 81 || ports[1].Protocol != "udp" || ports[1].HostIP.String() != "127.0.0.1" {
		t.Errorf("%+v, %v", ports, err)
	}
	for _, bad := range []string{"80", "0:80", "80:0", "65536:1", "1:1/icmp", "x:1:1", "1-2:1", "2-1:2-1", ":80"} {
		if p, err := ParsePort(bad); err == nil {
			t.Errorf("%q: %+v", bad, p)
		}
	}
	for _, bad := range []string{"", "0:1", "0:1:0", "0:1:x", "0:4294967295:1", "4294967295:1:1", "-1:1:1", "0:1:1:1"} {
		if m, err := ParseIDMaps([]string{bad}); err == nil {
			t.Errorf("%q: %+v", bad, m)
		}
	}
	if m, err := ParseIDMaps([]string{"0:100:10", "5:200:1"}); err == nil {
		t.Errorf("overlapping: %+v", m)
	}
	if line, err := ParseHost("v6:fe80::1"); err != nil || line != "fe80::1\tv6" {
		t.Errorf("%q, %v", line, err)
	}
}
