package runspec

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1048576": 1 << 20, "512k": 512 << 10, "64M": 64 << 20, "64MiB": 64 << 20, "64mb": 64 << 20,
		"1.5g": 3 << 29, "2 g": 2 << 30, "10b": 10, "8191p": 8191 << 50,
	} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "g", "-1", "1x", "1e30", "9999999999999999999", "8192p", "NaN", "Inf", "-1.5g", "1 2"} {
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]int{
		"TERM": 15, "sigkill": 9, "SIGUSR1": 10, "9": 9, "64": 64, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63,
	} {
		if got, err := ParseSignal(in); err != nil || int(got) != want {
			t.Errorf("%q: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "65", "-1", "NOSUCH", "RTMIN+31", "RTMAX+1", "RTMINx"} {
		if got, err := ParseSignal(in); err == nil {
			t.Errorf("%q: %d, want an error", in, got)
		}
	}
}

func TestCheckID(t *testing.T) {
	for _, ok := range []string{"a", "0", "web-1", "A.b_c", strings.Repeat("x", 76)} {
		if err := CheckID(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "-a", "a-", "a--b", "a/b", "a b", "ä", "../x", strings.Repeat("x", 77)} {
		if CheckID(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestParseMounts(t *testing.T) {
	dir := t.TempDir()
	type parser func(string) (specs.Mount, error)
	for _, test := range []struct {
		parse parser
		in    string
		want  string // type source destination options
	}{
		{ParseVolume, dir + ":/data", "bind " + dir + " /data rbind,rprivate"},
		{ParseVolume, dir + ":/data/:ro,rslave", "bind " + dir + " /data rbind,ro,rslave"},
		{ParseMount, "type=bind,src=" + dir + ",dst=/d,options=rbind:ro", "bind " + dir + " /d rbind,ro,rprivate"},
		{ParseMount, "source=" + dir + ",target=/d,readonly", "bind " + dir + " /d rbind,ro,rprivate"},
		{ParseMount, "src=" + dir + ",dst=/d,ro=false,bind-propagation=rshared", "bind " + dir + " /d rbind,rshared"},
		{ParseMount, "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777", "tmpfs tmpfs /t size=1048576,mode=1777"},
		{ParseTmpfs, "/t", "tmpfs tmpfs /t noexec,nosuid,nodev"},
		{ParseTmpfs, "/t:exec,size=1m", "tmpfs tmpfs /t nosuid,nodev,exec,size=1m"},
	} {
		m, err := test.parse(test.in)
		if got := strings.Join([]string{m.Type, m.Source, m.Destination, strings.Join(m.Options, ",")}, " "); err != nil || got != test.want {
			t.Errorf("%s: %s, %v, want %s", test.in, got, err, test.want)
		}
	}
	for _, bad := range []struct {
		parse parser
		in    string
	}{
		{ParseVolume, dir},
		{ParseVolume, ":/x"},
		{ParseVolume, "named:/x"},
		{ParseVolume, dir + ":x"},
		{ParseVolume, dir + ":/"},
		{ParseVolume, dir + ":/x:Z"},
		{ParseVolume, dir + "/none:/x"},
		{ParseVolume, "a:b:c:d"},
		{ParseMount, ""},
		{ParseMount, "type=bind,dst=/x"},
		{ParseMount, "type=volume,src=a,dst=/x"},
		{ParseMount, "what=ever,dst=/x"},
		{ParseMount, "type=tmpfs,dst=/x,tmpfs-size=lots"},
		{ParseMount, `"`},
		{ParseMount, "src=" + dir + ",dst=/x,bind-propagation=no"},
		{ParseTmpfs, "x"},
		{ParseTmpfs, "/.."},
	} {
		if m, err := bad.parse(bad.in); err == nil {
			t.Errorf("%q: %+v, want an error", bad.in, m)
		}
	}
}

func TestParseLimitsAndDevices(t *testing.T) {
	if r, err := ParseUlimit("nofile=1:2"); err != nil || r != (specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"nofile", "nofile=2:1", "nosuch=1", "nofile=x"} {
		if _, err := ParseUlimit(bad); err == nil {
			t.Errorf("ulimit %q is taken", bad)
		}
	}
	for in, want := range map[string]Device{
		"/dev/null": {"/dev/null", "/dev/null", "rwm"}, "/dev/null:r": {"/dev/null", "/dev/null", "r"},
		"/dev/null:/dev/x": {"/dev/null", "/dev/x", "rwm"}, "/dev/null:/dev/x:rw": {"/dev/null", "/dev/x", "rw"},
	} {
		if d, err := ParseDevice(in); err != nil || d != want {
			t.Errorf("%q: %+v, %v", in, d, err)
		}
	}
	for _, bad := range []string{"", "null", "/dev/null:x", "/dev/null:/x:q", "/a:/b:r:w"} {
		if _, err := ParseDevice(bad); err == nil {
			t.Errorf("device %q is taken", bad)
		}
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("FROM_HERE", "value")
	env, err := ParseEnv([]string{"A=1", "FROM_HERE", "NOT_SET_ANYWHERE", "E="})
	if want := []string{"A=1", "FROM_HERE=value", "E="}; err != nil || !slices.Equal(env, want) {
		t.Errorf("%q, %v", env, err)
	}
	if _, err := ParseEnv([]string{"=x"}); err == nil {
		t.Error("a variable without a name is taken")
	}
	if got, want := MergeEnv([]string{"A=1", "B=2"}, []string{"A=3", "C=4", "A=5"}), []string{"A=5", "B=2", "C=4"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// build makes a spec over a root directory with users.
func build(t *testing.T, o Options, image *ocispec.ImageConfig) (*specs.Spec, error) {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1001:\naudio:x:29:app,root\n",
	} {
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.ID, o.Rootfs = "box", root
	return Build(namespaces.WithNamespace(context.Background(), "test"), &o, image, nil)
}

func TestBuildCommand(t *testing.T) {
	image := &ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}}
	for name, test := range map[string]struct {
		p    Process
		want []string
	}{
		"image's":             {Process{}, []string{"/entry", "cmd"}},
		"arguments":           {Process{Args: []string{"a", "b"}}, []string{"/entry", "a", "b"}},
		"entrypoint":          {Process{SetEntrypoint: true, Entrypoint: "/e"}, []string{"/e"}},
		"entrypoint and args": {Process{SetEntrypoint: true, Entrypoint: "/e", Args: []string{"a"}}, []string{"/e", "a"}},
		"no entrypoint":       {Process{SetEntrypoint: true, Args: []string{"a"}}, []string{"a"}},
	} {
		spec, err := build(t, Options{Process: test.p}, image)
		if err != nil || !slices.Equal(spec.Process.Args, test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, err := build(t, Options{Process: Process{SetEntrypoint: true}}, image); err == nil {
		t.Error("no command at all is taken")
	}
}

func TestBuildUser(t *testing.T) {
	for in, want := range map[string]specs.User{
		"":          {UID: 0, GID: 0, AdditionalGids: []uint32{0, 29}},
		"app":       {UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 29}},
		"1000":      {UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 29}},
		"7:8":       {UID: 7, GID: 8, AdditionalGids: []uint32{8}},
		"app:audio": {UID: 1000, GID: 29, AdditionalGids: []uint32{29}},
	} {
		spec, err := build(t, Options{Process: Process{User: in, Args: []string{"x"}}}, nil)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		u := spec.Process.User
		if u.UID != want.UID || u.GID != want.GID || !slices.Equal(u.AdditionalGids, want.AdditionalGids) {
			t.Errorf("%q: %+v, want %+v", in, u, want)
		}
	}
	for _, bad := range []string{"none", "app:none", "4294967295", "-1", "a:b:c"} {
		if _, err := build(t, Options{Process: Process{User: bad, Args: []string{"x"}}}, nil); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("user %q: %v", bad, err)
		}
	}
}

func TestBuildCapabilities(t *testing.T) {
	for name, test := range map[string]struct {
		add, drop []string
		want      []string // nil: not compared
		has, not  string
	}{
		"add":             {add: []string{"cap_net_admin"}, has: "CAP_NET_ADMIN"},
		"drop":            {drop: []string{"CAP_CHOWN"}, not: "CAP_CHOWN", has: "CAP_KILL"},
		"drop all":        {drop: []string{"all"}, want: []string{}},
		"drop all, add":   {drop: []string{"ALL"}, add: []string{"CAP_CHOWN"}, want: []string{"CAP_CHOWN"}},
		"add all but one": {add: []string{"ALL"}, drop: []string{"CAP_CHOWN"}, not: "CAP_CHOWN", has: "CAP_KILL"},
	} {
		spec, err := build(t, Options{Process: Process{Args: []string{"x"}}, Security: Security{CapAdd: test.add, CapDrop: test.drop}}, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for kind, set := range map[string][]string{
			"bounding": spec.Process.Capabilities.Bounding, "effective": spec.Process.Capabilities.Effective, "permitted": spec.Process.Capabilities.Permitted,
		} {
			if test.want != nil && !slices.Equal(set, test.want) ||
				test.has != "" && !slices.Contains(set, test.has) || test.not != "" && slices.Contains(set, test.not) {
				t.Errorf("%s: %s %q", name, kind, set)
			}
		}
	}
}

func TestDefaultSeccomp(t *testing.T) {
	spec, err := build(t, Options{Process: Process{Args: []string{"x"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	filter := spec.Linux.Seccomp
	if filter == nil || filter.DefaultAction != specs.ActErrno || len(filter.Syscalls) == 0 {
		t.Fatalf("the default filter is %+v", filter)
	}
	if runtime.GOARCH == "amd64" && !slices.Equal(filter.Architectures, []specs.Arch{specs.ArchX86_64, specs.ArchX86}) {
		t.Errorf("architectures %q", filter.Architectures)
	}
}

func TestBuildRefuses(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ERRNO","archMap":[]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	p := Process{Args: []string{"x"}}
	for name, test := range map[string]struct {
		o    Options
		want string
	}{
		"relative workdir":            {Options{Process: Process{Args: []string{"x"}, Cwd: "tmp"}}, "absolute"},
		"capability":                  {Options{Process: p, Security: Security{CapAdd: []string{"FLY"}}}, "FLY"},
		"without CAP_":                {Options{Process: p, Security: Security{CapDrop: []string{"net_raw"}}}, `"net_raw": write it with CAP_ (CAP_NET_RAW)`},
		"docker's profile":            {Options{Process: p, Security: Security{Seccomp: profile}}, "archMap"},
		"missing profile":             {Options{Process: p, Security: Security{Seccomp: "/no/such/file"}}, "/no/such/file"},
		"cpus with quota":             {Options{Process: p, Resources: Resources{CPUs: 1, CPUQuota: 1}}, "--cpus"},
		"swap below memory":           {Options{Process: p, Resources: Resources{Memory: 2 << 20, MemorySwap: 1 << 20}}, "--memory-swap"},
		"hostname of the host":        {Options{Process: p, Isolation: Isolation{HostUTS: true, Hostname: "x"}}, "UTS"},
		"host devices not privileged": {Options{Process: p, Security: Security{NoHostDevices: true}}, "--privileged"},
		"missing device":              {Options{Process: p, Devices: []Device{{"/dev/none", "/dev/none", "rwm"}}}, "/dev/none"},
	} {
		err := test.o.Check()
		if err == nil {
			_, err = build(t, test.o, nil)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

func TestBuildMountReplacesDefault(t *testing.T) {
	o := Options{Process: Process{Args: []string{"x"}}, Mounts: []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs", Source: "mine"}}}
	spec, err := build(t, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range spec.Mounts {
		if m.Destination == "/dev/shm" {
			n++
			if m.Source != "mine" {
				t.Errorf("/dev/shm is %+v", m)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d mounts at /dev/shm", n)
	}
}
