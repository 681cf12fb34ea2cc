package speccheck

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
)

// The features documents are what the binaries print.
func runtimeFeatures(t testing.TB, version string) Features {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("testdata", "runc-"+version+".json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseFeatures(doc, Runtime{Binary: "/usr/bin/runc"})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func crun181() Features {
	return Features{Runtime: ParseVersion("crun version 1.8.1\ncommit: f8a096be\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL\n")}
}

// A host with everything, on each version of cgroups.
func host(v2 bool) Host {
	h := Host{
		Kernel: Kernel{6, 18}, CgroupV2: v2, AppArmor: true, SELinux: true, Seccomp: true, RDT: true,
		HugePageSizes: []string{"2MB"}, Namespaces: []string{"pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"},
		Capabilities: 1<<41 - 1,
		Controllers:  []string{"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "rdma", "net_cls", "net_prio", "devices"},
	}
	if v2 {
		h.Controllers = []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"}
	}
	return h
}

func defaultSpec(t testing.TB) []byte {
	t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "test")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "c"}, oci.WithDefaultUnixDevices)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDefaultSpecPasses(t *testing.T) {
	spec := defaultSpec(t)
	for name, f := range map[string]Features{"runc 1.1.5": runtimeFeatures(t, "1.1.5"), "runc 1.5.2": runtimeFeatures(t, "1.5.2"), "crun 1.8.1": crun181()} {
		for _, h := range []Host{{}, host(false), host(true)} {
			if r := Check(spec, f, h); r.Action() > Allow {
				t.Errorf("%s, cgroup v2 %v: %+v", name, h.CgroupV2, r.Findings)
			}
		}
	}
	// Nothing is known of the runtime: the default spec uses nothing special.
	if r := Check(spec, Features{}, host(true)); r.Action() == Refuse {
		t.Errorf("unknown runtime: %v", r.Err())
	}
}

// A want is the path of the only finding, and its action; or empty.
func TestFindings(t *testing.T) {
	old, recent, crun, nothing := runtimeFeatures(t, "1.1.5"), runtimeFeatures(t, "1.5.2"), crun181(), Features{}
	v1, v2 := host(false), host(true)
	bare := Host{Kernel: Kernel{5, 10}}
	for _, c := range []struct {
		name string
		spec string
		f    Features
		h    Host
		path string
		want Action
	}{
		{"domain name, old", `{"domainname":"d"}`, old, v1, "domainname", Refuse},
		{"domain name, new", `{"domainname":"d"}`, recent, v1, "", Allow},
		{"domain name, crun", `{"domainname":"d"}`, crun, v1, "", Allow},
		{"domain name, unknown", `{"domainname":"d"}`, nothing, v1, "domainname", Warn},
		{"mapped mount, old", `{"mounts":[{"destination":"/a","options":["bind","idmap"]}]}`, old, v1, "mounts[0].options[1]", Refuse},
		{"mapped mount, new", `{"mounts":[{"destination":"/a","options":["bind","idmap"]}]}`, recent, v1, "", Allow},
		{"mapped mount, unknown", `{"mounts":[{"type":"bind","options":["ridmap"]}]}`, nothing, v1, "mounts[0].options[0]", Refuse},
		{"mapped mount, old kernel", `{"mounts":[{"type":"bind","options":["idmap"]}]}`, recent, bare, "mounts[0].options[0]", Refuse},
		{"mapping, old", `{"mounts":[{"type":"bind","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]}`, old, v1, "mounts[0].uidMappings", Refuse},
		{"mapping, crun without features", `{"mounts":[{"type":"bind","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]}`, crun, v1, "mounts[0].uidMappings", Refuse},
		{"mapped tmpfs on runc", `{"mounts":[{"type":"tmpfs","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]}`, recent, v1, "mounts[0]", Refuse},
		{"unknown option of a bind mount", `{"mounts":[{"options":["size=1m"],"type":"bind"}]}`, recent, v1, "mounts[0].options[0]", Refuse},
		{"the same of a tmpfs", `{"mounts":[{"type":"tmpfs","options":["size=1m"]}]}`, recent, v1, "", Allow},
		{"recursive option", `{"mounts":[{"options":["rbind","rro"]}]}`, old, v1, "", Allow},
		{"recursive option, old kernel", `{"mounts":[{"options":["rbind","rro"]}]}`, old, bare, "mounts[0].options[1]", Refuse},
		{"copy-up of no tmpfs", `{"mounts":[{"options":["bind","tmpcopyup"]}]}`, old, v1, "mounts[0].options[1]", Refuse},
		{"time namespace, old", `{"linux":{"namespaces":[{"type":"time"}]}}`, old, v1, "linux.namespaces[0].type", Refuse},
		{"time namespace, new", `{"linux":{"namespaces":[{"type":"time"}],"timeOffsets":{"boottime":{"secs":1}}}}`, recent, v1, "", Allow},
		{"clock", `{"linux":{"namespaces":[{"type":"time"}],"timeOffsets":{"wall":{"secs":1}}}}`, recent, v1, `linux.timeOffsets["wall"]`, Refuse},
		{"scheduler", `{"process":{"scheduler":{"policy":"SCHED_BATCH"}}}`, old, v1, "process.scheduler", Refuse},
		{"scheduler, wrong policy", `{"process":{"scheduler":{"policy":"SCHED_BEST"}}}`, recent, v1, "process.scheduler.policy", Refuse},
		{"memory policy, document", `{"linux":{"memoryPolicy":{"mode":"MPOL_BEST","nodes":"0"}}}`, recent, v1, "linux.memoryPolicy.mode", Refuse},
		{"seccomp action", `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_PERHAPS"}}}`, old, v1, "linux.seccomp.defaultAction", Refuse},
		{"seccomp flag, old", `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}}}`, old, v1, "linux.seccomp.flags[0]", Refuse},
		{"seccomp, unknown", `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}}}`, nothing, v1, "linux.seccomp", Refuse},
		{"seccomp, kernel without", `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}}}`, old, bare, "linux.seccomp", Refuse},
		{"AppArmor, host without", `{"process":{"apparmorProfile":"p"}}`, old, bare, "process.apparmorProfile", Refuse},
		{"SELinux, host without", `{"linux":{"mountLabel":"l"}}`, old, bare, "linux.mountLabel", Refuse},
		{"swappiness, v1", `{"linux":{"resources":{"memory":{"swappiness":0}}}}`, old, v1, "", Allow},
		{"swappiness, v2", `{"linux":{"resources":{"memory":{"swappiness":0}}}}`, old, v2, "linux.resources.memory.swappiness", Refuse},
		{"unified, v1", `{"linux":{"resources":{"unified":{"memory.high":"1"}}}}`, old, v1, "linux.resources.unified", Refuse},
		{"unified, v2", `{"linux":{"resources":{"unified":{"memory.high":"1"}}}}`, old, v2, "", Allow},
		{"burst", `{"linux":{"resources":{"cpu":{"burst":1}}}}`, old, v2, "linux.resources.cpu.burst", Refuse},
		{"OOM killer left on", `{"linux":{"resources":{"memory":{"disableOOMKiller":false}}}}`, old, v2, "", Allow},
		{"kernel memory", `{"linux":{"resources":{"memory":{"kernel":1}}}}`, old, Host{}, "linux.resources.memory.kernel", Refuse},
		{"kernel memory, new kernel", `{"linux":{"resources":{"memory":{"kernel":1}}}}`, crun, v1, "linux.resources.memory.kernel", Refuse},
		{"leaf weight", `{"linux":{"resources":{"blockIO":{"leafWeight":10}}}}`, recent, v1, "linux.resources.blockIO.leafWeight", Refuse},
		{"weight, crun", `{"linux":{"resources":{"blockIO":{"weight":10}}}}`, crun, v1, "linux.resources.blockIO.weight", Refuse},
		{"weight, runc", `{"linux":{"resources":{"blockIO":{"weight":10}}}}`, old, v1, "", Allow},
		{"clock without a namespace", `{"linux":{"timeOffsets":{"boottime":{"secs":1}}}}`, recent, v1, "linux.timeOffsets", Refuse},
		{"nobody listens", `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NOTIFY"}}}`, recent, v1, "linux.seccomp.defaultAction", Refuse},
		{"somebody listens", `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/s"}}}`, recent, v1, "", Allow},
		{"shared root, old", `{"linux":{"rootfsPropagation":"rshared"}}`, old, v1, "linux.rootfsPropagation", Refuse},
		{"slave root, old", `{"linux":{"rootfsPropagation":"rslave"}}`, old, v1, "", Allow},
		{"shared root, new", `{"linux":{"rootfsPropagation":"rshared"}}`, recent, v1, "", Allow},
		{"shared mount, crun", `{"mounts":[{"options":["rshared","rbind"]}]}`, crun, v1, "mounts[0].options[0]", Refuse},
		{"shared mount in a shared root, crun", `{"mounts":[{"options":["rshared","rbind"]}],"linux":{"rootfsPropagation":"rshared"}}`, crun, v1, "", Allow},
		{"shared mount, runc", `{"mounts":[{"options":["rshared","rbind"]}]}`, old, v1, "", Allow},
		{"nosymfollow, crun", `{"mounts":[{"options":["rbind","nosymfollow"]}]}`, crun, v1, "mounts[0].options[1]", Refuse},
		{"sysctl of the host", `{"linux":{"sysctl":{"vm/swappiness":"1"}}}`, recent, v1, `linux.sysctl["vm/swappiness"]`, Refuse},
		{"sysctl of a namespace", `{"linux":{"sysctl":{"net/ipv4/ip_forward":"1","kernel.sem":"1"}}}`, recent, v1, "", Allow},
		{"another major version", `{"ociVersion":"2.0.0"}`, recent, v1, "ociVersion", Refuse},
		{"rdma, crun", `{"linux":{"resources":{"rdma":{"mlx":{"hcaHandles":1}}}}}`, crun, v2, "linux.resources.rdma", Refuse},
		{"page size", `{"linux":{"resources":{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}}}`, old, v2, "linux.resources.hugepageLimits[0].pageSize", Refuse},
		{"controller", `{"linux":{"resources":{"pids":{"limit":1}}}}`, old, Host{Kernel: Kernel{6, 1}, Controllers: []string{}}, "linux.resources.pids.limit", Refuse},
		{"capability that is none", `{"process":{"capabilities":{"bounding":["CAP_FLY"]}}}`, old, v1, "process.capabilities.bounding[0]", Refuse},
		{"capability not granted", `{"process":{"capabilities":{"bounding":["CAP_BPF"]}}}`, old, Host{Kernel: Kernel{6, 1}, Capabilities: 1}, "process.capabilities.bounding[0]", Warn},
		{"hook", `{"hooks":{"poststop":[{"path":"/x"}]}}`, old, v1, "", Allow},
		{"other platform", `{"windows":{"layerFolders":[]}}`, old, v1, "windows", Refuse},
		{"other platform, scalar", `{"process":{"commandLine":"x"}}`, old, v1, "process.commandLine", Refuse},
		{"typing error", `{"proces":{}}`, old, v1, "proces", Refuse},
		{"upper case", `{"Hostname":"x"}`, old, v1, "Hostname", Refuse},
		{"twice", `{"hostname":"a","hostname":"b"}`, old, v1, "hostname", Refuse},
		{"key twice", `{"annotations":{"a":"b","a":"c"}}`, old, v1, `annotations["a"]`, Refuse},
		{"wrong type", `{"hostname":1}`, old, v1, "hostname", Refuse},
		{"object for a list", `{"mounts":{}}`, old, v1, "mounts", Refuse},
		{"number out of range", `{"process":{"user":{"uid":4294967296}}}`, old, v1, "process.user.uid", Refuse},
		{"fraction", `{"process":{"user":{"uid":1.0}}}`, old, v1, "process.user.uid", Refuse},
		{"NUL", `{"hostname":"a\u0000b"}`, old, v1, "hostname", Refuse},
		{"null is no use", `{"domainname":null,"process":null}`, old, v1, "", Allow},
		{"null in a list", `{"mounts":[null]}`, old, v1, "mounts[0]", Refuse},
		{"newer spec", `{"ociVersion":"1.3.0"}`, old, v1, "ociVersion", Allow},
		{"no version", `{"ociVersion":"new"}`, old, v1, "ociVersion", Refuse},
		{"cut off", `{"hostname":"a"`, old, v1, "(spec)", Refuse},
		{"followed", `{} {}`, old, v1, "(spec)", Refuse},
		{"no object", `[]`, old, v1, "(spec)", Refuse},
		{"empty", ``, old, v1, "(spec)", Refuse},
	} {
		r := Check([]byte(c.spec), c.f, c.h)
		switch {
		case c.path == "":
			if len(r.Findings) > 0 {
				t.Errorf("%s: %+v", c.name, r.Findings)
			}
		case len(r.Findings) != 1 || r.Findings[0].Path != c.path || r.Findings[0].Action != c.want:
			t.Errorf("%s: want %v at %s only, have %+v", c.name, c.want, c.path, r.Findings)
		}
		if err := r.Err(); (err != nil) != (c.want == Refuse) || err != nil && (!errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
}

func TestExecAndUpdate(t *testing.T) {
	old, recent := runtimeFeatures(t, "1.1.5"), runtimeFeatures(t, "1.5.2")
	process := []byte(`{"args":["a"],"user":{"umask":18}}`)
	if r := CheckProcess(process, old, Host{}); len(r.Findings) != 1 || r.Findings[0].Path != "process.user.umask" {
		t.Errorf("runc 1.1 ignores the umask of an exec: %+v", r.Findings)
	}
	if r := CheckProcess(process, recent, Host{}); len(r.Findings) != 1 || r.Action() != Warn {
		t.Errorf("runc 1.5 takes that of the container: %+v", r.Findings)
	}
	if r := CheckProcess(process, crun181(), Host{}); len(r.Findings) != 0 {
		t.Errorf("crun has it: %+v", r.Findings)
	}
	if r := CheckProcess([]byte(`{"oomScoreAdj":1}`), recent, Host{}); r.Action() != Warn {
		t.Errorf("runc takes the OOM score of the container: %+v", r.Findings)
	}
	if r := CheckProcess([]byte(`{"capabilities":{"bounding":[]},"scheduler":{"policy":"SCHED_X"}}`), recent, Host{}); len(r.Findings) != 1 || strings.ContainsAny(r.Findings[0].Value, "{}") {
		t.Errorf("the value runs on behind its end: %+v", r.Findings)
	}
	resources := []byte(`{"memory":{"limit":1,"swappiness":1},"devices":[{"allow":false,"access":"rwm"}]}`)
	r := CheckResources(resources, recent, host(false))
	if len(r.Findings) != 2 || r.Findings[0].Path != "linux.resources.memory.swappiness" || r.Findings[0].Action != Refuse || r.Findings[1].Action != Warn {
		t.Errorf("runc update ignores both: %+v", r.Findings)
	}
}

func TestPolicy(t *testing.T) {
	r := Check([]byte(`{"domainname":"d","hostName":"x"}`), runtimeFeatures(t, "1.1.5"), Host{})
	for text, want := range map[string]Action{
		"": Refuse, "namespaces=warn": Refuse, "namespaces=warn,unknown-member=allow": Warn,
		"runc:namespaces=allow,runc:unknown-member=allow":                                                        Allow,
		"crun:namespaces=allow,unknown-member=allow":                                                             Refuse,
		"/usr/bin/runc:namespaces=allow, unknown-member=allow":                                                   Allow,
		"namespaces=allow,unknown-member=allow,io.containerd.runc.v2:namespaces=refuse":                          Refuse,
		"io.containerd.runc.v2:namespaces=allow,io.containerd.runc.v2:unknown-member=warn,unknown-member=refuse": Warn,
	} {
		p, err := ParsePolicy(text)
		if err != nil {
			t.Fatal(err)
		}
		if have := r.Judge(p, "io.containerd.runc.v2").Action(); have != want {
			t.Errorf("%q: %v, not %v", text, have, want)
		}
	}
	for _, text := range []string{"namespaces", "namespaces=maybe", "spaces=warn"} {
		if _, err := ParsePolicy(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func BenchmarkCheckDefaultSpec(b *testing.B) {
	spec, f, h := defaultSpec(b), runtimeFeatures(b, "1.5.2"), host(true)
	b.SetBytes(int64(len(spec)))
	b.ReportAllocs()
	for b.Loop() {
		if r := Check(spec, f, h); r.Action() > Allow {
			b.Fatal(r.Findings)
		}
	}
}

// What Kata Containers' agent is never told is refused by the name of its shim.
func TestShimRuntime(t *testing.T) {
	f, err := ParseFeatures(nil, ShimRuntime("/opt/kata/bin/containerd-shim-kata-qemu-v2"))
	if err != nil {
		t.Fatal(err)
	}
	spec := []byte(`{"ociVersion": "1.1.0", "domainname": "d"}`)
	if r := Check(spec, f, Host{}); r.Action() != Refuse || len(r.Findings) != 1 || r.Findings[0].Path != "domainname" || r.Findings[0].Unknown {
		t.Errorf("%+v", r)
	}
	for path, want := range map[string]string{
		"/usr/bin/containerd-shim-runsc-v1": "runsc", "/usr/bin/containerd-shim-kata-v2": "kata",
		"/usr/bin/containerd-shim-katana-v2": "", "/usr/bin/kata-v2": "", "": "",
	} {
		if rt := ShimRuntime(path); rt.Name != want || rt.Binary != path {
			t.Errorf("%s: %+v, want %q", path, rt, want)
		}
	}
}
