package executor_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	bk "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/network/proxyprovider"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/berthd/berth/executor"
)

// with is another executor on the same client.
func (l *lab) with(t *testing.T, cfg executor.Config) *lab {
	t.Helper()
	cfg.Root, cfg.Namespace = filepath.Join(l.root, identity.NewID()), l.namespace
	return newLab(t, l.client, cfg)
}

// fails runs a step that has to be refused with the text.
func (l *lab) fails(t *testing.T, what, text string, meta bk.Meta) error {
	t.Helper()
	r := l.run(t.Context(), rootfs(t), meta)
	if r.failed == nil || !strings.Contains(r.failed.Error(), text) {
		t.Errorf("%s: %v, want %q", what, r.failed, text)
	}
	return r.failed
}

// What an executor or a step can be told beside TestStep's, each by its effect.
func TestOptions(t *testing.T) {
	t.Parallel()
	ours(t, executor.Config{}, func(t *testing.T, l *lab) {
		for name, test := range map[string]func(*testing.T, *lab){
			"networks": testNetworks, "provider": testProvider, "proxy": testProxy, "DNS": testDNS, "CDI": testCDI,
			"insecure": testInsecure, "cgroup": testCgroup, "trace socket": testTraceSocket, "rootless": testRootless,
			"LSM": testLSM,
		} {
			t.Run(name, func(t *testing.T) { test(t, l) })
		}
	})
}

func testNetworks(t *testing.T, l *lab) {
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for mode, host := range map[pb.NetMode]bool{pb.NetMode_UNSET: true, pb.NetMode_HOST: true, pb.NetMode_NONE: false} {
		meta := sh("readlink /proc/self/ns/net; tail -n +3 /proc/net/dev | grep -v -c ' lo:'")
		meta.NetMode, meta.ValidExitCodes = mode, []int{0, 1} // grep's, when it finds none
		ns, others, _ := strings.Cut(l.must(t, rootfs(t), meta), "\n")
		equal(t, fmt.Sprintf("mode %s is the host's namespace", mode), ns == own, host)
		if !host {
			equal(t, "interfaces beside lo", others, "0")
		}
	}
	meta := sh("true")
	meta.NetMode = 77
	if err := l.fails(t, "unknown mode", "unknown network mode", meta); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v is no InvalidArgument", err)
	}
}

// ttlProvider makes networks that are told by a TTL of their own.
type ttlProvider struct {
	fail   error
	open   atomic.Int32
	closed atomic.Int32
}

func (p *ttlProvider) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	p.open.Add(1)
	return ttlNamespace{p}, nil
}

func (p *ttlProvider) Close() error { return nil }

type ttlNamespace struct{ p *ttlProvider }

func (n ttlNamespace) Set(s *specs.Spec) error {
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = ""
			return nil
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	return nil
}

func (n ttlNamespace) Close() error {
	n.p.closed.Add(1)
	return nil
}

func (n ttlNamespace) Sample() (*resourcestypes.NetworkSample, error) {
	return &resourcestypes.NetworkSample{RxBytes: 1234}, nil
}

func (n ttlNamespace) OnCreateRuntime(pid uint32) error {
	if n.p.fail != nil {
		return n.p.fail
	}
	return inNetns(fmt.Sprintf("/proc/%d/ns/net", pid), func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_default_ttl", []byte("42"), 0)
	})
}

// inNetns calls f in a network namespace, or in a new one. Its thread comes
// back: the first one of a process cannot end, and is what /proc/self shows.
func inNetns(path string, f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	if path == "" {
		err = unix.Unshare(unix.CLONE_NEWNET)
	} else if ns, oerr := os.Open(path); oerr != nil {
		err = oerr
	} else {
		err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
	}
	if err == nil {
		err = f()
	}
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return err
}

// A provider's network is made ready before the step's program runs, told of
// in the samples, and closed once.
func testProvider(t *testing.T, l *lab) {
	p := &ttlProvider{}
	l = l.with(t, executor.Config{Networks: map[pb.NetMode]network.Provider{pb.NetMode_UNSET: p}})
	r := l.run(t.Context(), rootfs(t), sh("cat /proc/sys/net/ipv4/ip_default_ttl"))
	if r.failed != nil || r.out != "42\n" {
		t.Errorf("in the step: %q, %v", r.out, r.failed)
	}
	if s, err := r.rec.Samples(); err != nil || len(s.Samples) == 0 || s.Samples[len(s.Samples)-1].NetStat == nil {
		t.Errorf("no sample of the network: %+v, %v", s, err)
	} else {
		equal(t, "received", s.Samples[len(s.Samples)-1].NetStat.RxBytes, 1234)
	}
	p.fail = errors.New("no cable")
	if err := l.fails(t, "network that fails", "no cable", sh("touch /ran")); !errors.Is(err, p.fail) {
		t.Errorf("%v does not wrap its cause", err)
	}
	equal(t, "opened", p.open.Load(), 2)
	equal(t, "closed", p.closed.Load(), 2)
}

// BuildKit's own proxy: the step gets out through it alone, and trusts it.
func testProxy(t *testing.T, l *lab) {
	asked := sh("true")
	asked.Proxy = &network.ProxyConfig{}
	if err := l.fails(t, "proxy where there is none", "wants a proxy", asked); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v is no FailedPrecondition", err)
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from outside") })}
	go func() { _ = server.Serve(web) }() // ends with Close
	defer server.Close()
	host := network.NewHostProvider()
	proxy, err := proxyprovider.New(proxyprovider.Opt{
		Root: t.TempDir(), EgressProviders: map[pb.NetMode]network.Provider{pb.NetMode_UNSET: host, pb.NetMode_HOST: host},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	l = l.with(t, executor.Config{Proxy: proxy})

	root := rootfs(t)
	if err := os.MkdirAll(filepath.Join(root, "etc/ssl/certs"), 0o755); err != nil {
		t.Fatal(err)
	}
	const bundle = "etc/ssl/certs/ca-certificates.crt"
	write(t, root, bundle, "# those of the image\n")
	capture := network.NewProxyCapture()
	meta := sh("env; cat /" + bundle + "; wget -q -O - http://" + web.Addr().String() + "/file")
	meta.Env = append(meta.Env, "HTTP_PROXY=http://other.invalid")
	meta.Proxy = &network.ProxyConfig{Capture: capture, EgressMode: pb.NetMode_HOST}
	out := l.must(t, root, meta)
	contains(t, "environment", out, "\nHTTP_PROXY=http://10.")
	contains(t, "environment", out, "\nhttp_proxy=http://10.")
	contains(t, "certificates", out, "# those of the image\n")
	contains(t, "certificates", out, "-----BEGIN CERTIFICATE-----")
	contains(t, "fetched", out, "from outside")
	if b, err := os.ReadFile(filepath.Join(root, bundle)); err != nil || string(b) != "# those of the image\n" {
		t.Errorf("certificates after the step: %q, %v", b, err)
	}

	// An exec has the proxy too, whatever else it has.
	meta = sh("while :; do sleep 0.1; done")
	meta.Proxy = &network.ProxyConfig{EgressMode: pb.NetMode_HOST}
	b := l.start(t, root, meta)
	r := l.exec(t.Context(), b.id, bk.Meta{
		Args: []string{"/bin/env"}, Env: []string{"PATH=/bin", "MY=own", "http_proxy=http://other.invalid"}, Proxy: meta.Proxy,
	}, "")
	contains(t, "exec", r.out, "MY=own\n")
	contains(t, "exec", r.out, "http_proxy=http://10.")
	b.stop(errStop)
	<-b.ended
}

func testDNS(t *testing.T, l *lab) {
	dns := &oci.DNSConfig{Nameservers: []string{"10.9.8.7", "fd00::7"}, SearchDomains: []string{"corp.test"}, Options: []string{"ndots:3"}}
	configured := l.with(t, executor.Config{DNS: dns})
	for _, mode := range []pb.NetMode{pb.NetMode_HOST, pb.NetMode_NONE} {
		meta := sh("cat /etc/resolv.conf")
		meta.NetMode = mode
		out := configured.must(t, rootfs(t), meta) + "\n"
		for _, line := range []string{"nameserver 10.9.8.7\n", "nameserver fd00::7\n", "search corp.test\n", "options ndots:3\n"} {
			contains(t, "resolv.conf of mode "+mode.String(), out, line)
		}
	}
	bad := l.with(t, executor.Config{DNS: &oci.DNSConfig{Nameservers: []string{"dns.corp.test"}}})
	if err := bad.fails(t, "server with a name", `nameserver "dns.corp.test"`, sh("true")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v is no InvalidArgument", err)
	}
}

const cdiSpec = `{"cdiVersion": "0.6.0", "kind": "berth.test/dev", "devices": [{"name": "zero", "containerEdits": {
	"env": ["CDI=given"],
	"deviceNodes": [{"path": "/dev/of-cdi", "hostPath": "/dev/zero", "permissions": "r"}],
	"mounts": [{"hostPath": "DIR", "containerPath": "/of-cdi", "options": ["bind", "ro"]}]}}]}`

func testCDI(t *testing.T, l *lab) {
	device := func(name string, optional bool) bk.Meta {
		meta := sh("echo $CDI; cat /of-cdi/file; dd if=/dev/of-cdi bs=4 count=1 2>/dev/null | wc -c")
		meta.CDIDevices = []*pb.CDIDevice{{Name: name, Optional: optional}}
		return meta
	}
	if err := l.fails(t, "no CDI", "wants CDI devices", device("berth.test/dev=zero", false)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v is no FailedPrecondition", err)
	}
	dir, data := t.TempDir(), t.TempDir()
	write(t, data, "file", "in the mount\n")
	write(t, dir, "berth.json", strings.ReplaceAll(cdiSpec, "DIR", data))
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dir), cdi.WithAutoRefresh(false))
	if err != nil {
		t.Fatal(err)
	}
	l = l.with(t, executor.Config{CDI: cdidevices.NewManager(cache, nil)})
	equal(t, "device", l.must(t, rootfs(t), device("berth.test/dev=zero", false)), "given\nin the mount\n4")
	l.fails(t, "unknown device", "berth.test/dev=one", device("berth.test/dev=one", false))
	without := device("berth.test/dev=one", true)
	without.Args = []string{"/bin/true"}
	l.must(t, rootfs(t), without)
}

func testInsecure(t *testing.T, l *lab) {
	what := "grep -E '^(CapEff|Seccomp):' /proc/self/status; mount -t tmpfs none /tmp 2>/dev/null && echo mounts"
	confined, free := sh(what), sh(what)
	confined.ValidExitCodes = []int{1}
	free.SecurityMode = pb.SecurityMode_INSECURE
	out := l.must(t, rootfs(t), confined)
	contains(t, "sandbox", out, "CapEff:\t00000000a80425fb\n")
	contains(t, "sandbox", out, "Seccomp:\t2")
	out = l.must(t, rootfs(t), free)
	contains(t, "insecure", out, "Seccomp:\t0")
	contains(t, "insecure", out, "mounts")
	unknown := sh("true")
	unknown.SecurityMode = 9
	l.fails(t, "unknown mode", "9", unknown)
}

// The cgroup of a step, and what it is told of it in /proc and in its cgroupfs.
func testCgroup(t *testing.T, l *lab) {
	parent := l.namespace + "/of-executor"
	defer func() { // runc leaves the parents
		for _, dir := range []string{"/of-executor/buildkit", "/of-executor", "/of-step/buildkit", "/of-step"} {
			for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
				groups, _ := filepath.Glob(pattern + l.namespace + dir)
				for _, g := range groups {
					_ = os.Remove(g)
				}
			}
		}
	}()
	l = l.with(t, executor.Config{CgroupParent: parent})
	meta := sh("cat /proc/self/cgroup; cd /sys/fs/cgroup; " +
		"cat memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus cpuset/cpuset.mems 2>/dev/null || " +
		"cat memory.max cpu.weight cpu.max cpuset.cpus cpuset.mems")
	meta.LinuxResources = &pb.LinuxResources{
		Memory: 64 << 20, MemorySwap: 64 << 20, CpuShares: 512, CpuQuota: 30_000, CpuPeriod: 60_000, CpusetCpus: "0", CpusetMems: "0",
	}
	b := l.start(t, rootfs(t), sh("while :; do sleep 0.1; done"))
	contains(t, "cgroup", l.exec(t.Context(), b.id, sh("cat /proc/1/cgroup"), "").out, ":/"+parent+"/buildkit/"+b.id+"\n")
	b.stop(errStop)
	<-b.ended
	out := l.must(t, rootfs(t), meta)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		contains(t, "limits", out, "67108864\n")
		contains(t, "limits", out, "30000 60000\n0\n0")
	} else {
		contains(t, "limits", out, "67108864\n512\n30000\n60000\n0\n0")
	}
	meta.CgroupParent = l.namespace + "/of-step"
	impossible := sh("true")
	impossible.LinuxResources = &pb.LinuxResources{CpusetCpus: "4095"}
	l.fails(t, "a CPU that is not there", "cpuset", impossible)
	contains(t, "the step's own parent", l.must(t, rootfs(t), meta), ":/"+l.namespace+"/of-step/buildkit/")
}

func testTraceSocket(t *testing.T, l *lab) {
	path := filepath.Join(t.TempDir(), "trace.sock")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l = l.with(t, executor.Config{TraceSocket: path})
	look := sh("test -S /dev/otel-grpc.sock && echo socket; env")
	out := l.must(t, rootfs(t), look)
	contains(t, "step", out, "socket\n")
	contains(t, "step", out, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=unix:///dev/otel-grpc.sock")
	socket.Close()
	if out := l.must(t, rootfs(t), look); strings.HasPrefix(out, "socket") {
		t.Errorf("a socket that is not there: %q", out)
	}
}

// The spec of a rootless step needs no cgroup and no /sys.
func testRootless(t *testing.T, l *lab) {
	l = l.with(t, executor.Config{Rootless: true})
	root := rootfs(t)
	if err := os.Remove(filepath.Join(root, "sys")); err != nil {
		t.Fatal(err)
	}
	b := l.start(t, root, sh("while ! test -e /enough; do sleep 0.05; done"))
	c, err := l.client.LoadContainer(withNamespace(l), b.id)
	if err != nil {
		t.Fatal(err)
	}
	checkRootless(t, c, withNamespace(l))
	write(t, root, "enough", "")
	<-b.ended
	if b.err != nil {
		t.Error(b.err)
	}
	if st, err := os.Stat(filepath.Join(root, "sys")); err != nil || !st.IsDir() {
		t.Errorf("a mount point that the runtime would have made: %v, %v", st, err)
	}
	_, err = executor.New(l.client, executor.Config{Root: t.TempDir(), Rootless: true, Limits: executor.Limits{PIDs: 1}})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("limits without a cgroup: %v", err)
	}
}

func checkRootless(t *testing.T, c client.Container, ctx context.Context) {
	t.Helper()
	spec, err := c.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Linux.Resources != nil || spec.Linux.CgroupsPath != "" {
		t.Errorf("cgroup %q, resources %+v", spec.Linux.CgroupsPath, spec.Linux.Resources)
	}
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/sys") {
			t.Errorf("mount on %s", m.Destination)
		}
	}
}

// Where the kernel cannot confine a step as it was to be, it does not run.
func testLSM(t *testing.T, l *lab) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		l.with(t, executor.Config{SELinux: true}).fails(t, "SELinux", "selinux is not available", sh("true"))
	}
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		l.with(t, executor.Config{AppArmorProfile: "p"}).fails(t, "AppArmor", "AppArmor is not supported on this host", sh("true"))
	}
}
