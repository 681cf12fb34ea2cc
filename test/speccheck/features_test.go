package speccheck

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/harness"
)

func TestMain(m *testing.M) { os.Exit(faketest.Run(m)) }

// TestFeatures gives a runtime one features document after the other: what the
// document lacks is refused, what it has is passed to the runtime. The runtime
// is a fake one, which does nothing of a spec.
func TestFeatures(t *testing.T) {
	l := newLab(t, harness.Config{})
	without := func(list []string, name string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(have string) bool { return have == name })
	}
	enabled, not := true, false
	seccomp := func(member string) string {
		return `{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", ` + member + `}}}`
	}
	for i, test := range []struct {
		path, spec string
		lacks, has func(f *features.Features)
	}{
		{
			"mounts[3].options[1]", bindTree(`"rbind", "rro"`),
			func(f *features.Features) { f.MountOptions = without(f.MountOptions, "rro") }, nil,
		},
		{
			"mounts[3].options[0]", `{"mounts": [{"destination": "/full", "type": "tmpfs", "options": ["tmpcopyup"]}]}`,
			func(f *features.Features) { f.MountOptions = without(f.MountOptions, "tmpcopyup") }, nil,
		},
		{
			"mounts[3].options[1]", bindTree(`"rbind", "idmap"`),
			func(f *features.Features) { f.Linux.MountExtensions.IDMap.Enabled = &not }, nil,
		},
		{
			"mounts[3].uidMappings", `{"mounts": [{"destination": "/m", "type": "bind", "source": "/tmp", "options": ["bind"],
				"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}]}`,
			func(f *features.Features) { f.Linux.MountExtensions.IDMap.Enabled = &not }, nil,
		},
		{
			"hooks.poststop", `{"hooks": {"poststop": [{"path": "/bin/true"}]}}`,
			func(f *features.Features) { f.Hooks = without(f.Hooks, "poststop") }, nil,
		},
		{
			"linux.namespaces[5].type", `{"linux": {"namespaces": [{"type": "time"}]}}`,
			func(f *features.Features) { f.Linux.Namespaces = without(f.Linux.Namespaces, "time") }, nil,
		},
		{
			"process.capabilities.bounding[7]", `{"process": {"capabilities": {"bounding": ["CAP_BPF"]}}}`,
			func(f *features.Features) { f.Linux.Capabilities = without(f.Linux.Capabilities, "CAP_BPF") }, nil,
		},
		{
			"linux.seccomp", seccomp(`"syscalls": []`),
			func(f *features.Features) { f.Linux.Seccomp.Enabled = &not }, nil,
		},
		{
			"linux.seccomp.syscalls[0].action", seccomp(`"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_LOG"}]`),
			func(f *features.Features) { f.Linux.Seccomp.Actions = without(f.Linux.Seccomp.Actions, "SCMP_ACT_LOG") }, nil,
		},
		{
			"linux.seccomp.syscalls[0].args[0].op",
			seccomp(`"syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NE"}]}]`),
			func(f *features.Features) {
				f.Linux.Seccomp.Operators = without(f.Linux.Seccomp.Operators, "SCMP_CMP_NE")
			}, nil,
		},
		{
			"linux.seccomp.architectures[0]", seccomp(`"architectures": ["SCMP_ARCH_X32"]`),
			func(f *features.Features) { f.Linux.Seccomp.Archs = without(f.Linux.Seccomp.Archs, "SCMP_ARCH_X32") }, nil,
		},
		{
			"linux.seccomp.flags[0]", seccomp(`"flags": ["SECCOMP_FILTER_FLAG_LOG"]`),
			func(f *features.Features) { f.Linux.Seccomp.SupportedFlags = []string{} },
			func(f *features.Features) { f.Linux.Seccomp.SupportedFlags = []string{"SECCOMP_FILTER_FLAG_LOG"} },
		},
		{
			"linux.netDevices", `{"linux": {"netDevices": {"eth0": {}}}}`,
			func(f *features.Features) { f.Linux.NetDevices = &features.NetDevices{Enabled: &not} },
			func(f *features.Features) { f.Linux.NetDevices = &features.NetDevices{Enabled: &enabled} },
		},
		{
			"linux.memoryPolicy.mode", `{"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}}`,
			func(f *features.Features) {
				f.Linux.MemoryPolicy = &features.MemoryPolicy{Modes: []string{"MPOL_DEFAULT"}}
			},
			func(f *features.Features) {
				f.Linux.MemoryPolicy = &features.MemoryPolicy{Modes: []string{"MPOL_BIND"}}
			},
		},
	} {
		t.Run(test.path, func(t *testing.T) {
			t.Parallel()
			u := use{name: fmt.Sprint(i, " ", test.path), path: test.path, spec: []string{test.spec}, probe: "true", want: "^$", prepare: tree}
			r, replace := fakeRuntime(t, test.lacks)
			l.check(t, r, &u, nobody, nil, l.try(t, r, &u))
			// The binary is replaced, and the next container sees it.
			replace(test.has)
			u.name += " replaced"
			if got := l.try(t, r, &u); got.err != nil {
				t.Errorf("a runtime that has it: %s", got)
			}
		})
	}
}

// fakeRuntime makes a runtime whose features are the fake's default ones after
// a change, and a function that replaces it by one of other features.
func fakeRuntime(t *testing.T, change func(*features.Features)) (r *runtime, replace func(change func(*features.Features))) {
	t.Helper()
	fake := faketest.Binary(t)
	text, err := exec.Command(fake, "features").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, change func(*features.Features)) string {
		var f features.Features
		if err := json.Unmarshal(text, &f); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(&f)
		}
		path := filepath.Join(dir, name)
		faketest.WriteJSON(t, path, f)
		return "env FAKEOCI_FEATURES=" + path + " " + fake
	}
	r = newRuntime(t, "fake", fake, write("first", change))
	return r, func(change func(*features.Features)) {
		next := newRuntime(t, "fake", fake, write("second", change))
		if err := os.Rename(next.binary, r.binary); err != nil {
			t.Fatal(err)
		}
		r.calls = next.calls
	}
}

// TestUnknownRuntime has a runtime without features, of which nothing is known:
// what is unsafe to ignore is refused, everything else passes with a warning.
func TestUnknownRuntime(t *testing.T) {
	l := newLab(t, harness.Config{})
	fake := faketest.Binary(t)
	r := newRuntime(t, "stranger", fake, `sh -c 'case "$*" in *--version) echo stranger version 0.1; exit;; *features) echo no such command >&2; exit 1;; esac; exec `+fake+` "$@"' sh`)
	for _, u := range []use{
		{name: "filter", path: "linux.seccomp", spec: []string{`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}`}},
		{name: "idmap", path: "mounts[3].options[1]", spec: []string{bindTree(`"rbind", "idmap"`)}},
		{name: "profile", path: "process.apparmorProfile", spec: []string{`{"process": {"apparmorProfile": "p"}}`}},
		{name: "misspelt", path: "hostnam", spec: []string{`{"hostnam": "p"}`}},
	} {
		u.probe = "true"
		l.check(t, r, &u, nobody, nil, l.try(t, r, &u))
	}
	u := use{name: "priority", path: "process.ioPriority", probe: "true", want: "^$", spec: []string{
		`{"process": {"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}}}`,
	}}
	l.check(t, r, &u, nobody, []string{"stranger"}, l.try(t, r, &u))
}

// TestPolicy lets pass with a warning what the administrator says.
func TestPolicy(t *testing.T) {
	l := newLab(t, harness.Config{Toml: "\n[speccheck.classes]\nunknown-member = \"warn\"\n"})
	r := l.runtimes(t)[0]
	for _, u := range schemaUses {
		switch {
		case strings.HasPrefix(u.name, "misspelt"):
			l.check(t, r, &u, nobody, []string{r.name}, l.try(t, r, &u))
		case u.name == "member given twice":
			l.check(t, r, &u, nobody, nil, l.try(t, r, &u))
		}
	}
}
