package executor_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	bk "github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/network/cniprovider"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/harness"
)

func TestMain(m *testing.M) { os.Exit(faketest.Run(m)) }

// aloneVar tells this test program that it runs in a world of its own.
const aloneVar = "BERTH_TEST_ALONE"

// What depends on the host's network and files. The test runs itself again in
// namespaces where both are its own to change.
func TestAlone(t *testing.T) {
	if os.Getenv(aloneVar) == "" {
		t.Parallel()
		runAlone(t)
		return
	}
	changeHost(t)
	l := engineLab(t, executor.Config{})
	t.Run("CNI", func(t *testing.T) { testCNI(t, l) })
	t.Run("resolv.conf", func(t *testing.T) { testResolvConf(t, l) })
	t.Run("AppArmor", func(t *testing.T) { testAppArmor(t, l) })
}

func runAlone(t *testing.T) {
	programs := t.TempDir()
	for name, path := range map[string]string{"containerd-shim-berth-v2": harness.Shim(t), "fakeoci": faketest.Binary(t)} {
		if err := os.Symlink(path, filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), aloneVar+"=1", "BERTH_TEST_PROGRAMS="+programs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal is the thread's
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
}

// changeHost puts what can be written over /etc, /run and what tells of AppArmor.
func changeHost(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	try := func(source, target, kind, data string, flags uintptr) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			t.Fatalf("mount %s: %v", target, err)
		}
	}
	try("none", "/", "", "", unix.MS_REC|unix.MS_PRIVATE)
	try("tmpfs", dir, "tmpfs", "", 0)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, over := range []string{"/etc", "/usr/sbin"} {
		upper, work := filepath.Join(dir, over, "upper"), filepath.Join(dir, over, "work")
		mkdir(t, upper, work)
		try("overlay", over, "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", over, upper, work), 0)
	}
	for _, over := range []string{"/run", "/sys/kernel", "/sys/module"} {
		try("tmpfs", over, "tmpfs", "", 0)
	}
	mkdir(t, "/run/netns", "/run/systemd/resolve", "/etc/netns/lab", "/sys/kernel/security/apparmor", "/sys/module/apparmor/parameters")
	write(t, "/sys/module/apparmor/parameters", "enabled", "Y\n")
	write(t, "/usr/sbin", "apparmor_parser", "")
	if err := os.RemoveAll("/etc/resolv.conf"); err != nil { // it may be a link
		t.Fatal(err)
	}
	write(t, "/etc", "resolv.conf", "nameserver 10.3.3.3\n")
}

func mkdir(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

const cniConfig = `{"cniVersion": "1.0.0", "name": "steps", "plugins": [{"type": "bridge", "bridge": "steps0", "isGateway": true,
	"ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "10.87.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`

// Steps in a CNI network have addresses of their own, and give them back.
func testCNI(t *testing.T, l *lab) {
	dir := t.TempDir()
	write(t, dir, "cni.conflist", fmt.Sprintf(cniConfig, filepath.Join(dir, "leases")))
	provider, err := cniprovider.New(cniprovider.Opt{Root: dir, ConfigPath: filepath.Join(dir, "cni.conflist"), BinaryDir: "/usr/lib/cni"})
	if err != nil {
		t.Fatal(err)
	}
	web, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })}
	go func() { _ = server.Serve(web) }() // ends with Close
	defer server.Close()
	l = l.with(t, executor.Config{Networks: map[pb.NetMode]network.Provider{pb.NetMode_UNSET: provider}})
	ask := sh(fmt.Sprintf("wget -q -O - http://10.87.0.1:%d/", web.Addr().(*net.TCPAddr).Port))
	first := l.start(t, rootfs(t), sh("while :; do sleep 0.1; done"))
	one := l.exec(t.Context(), first.id, ask, "").out
	two := l.must(t, rootfs(t), ask)
	for i, out := range []string{one, two} {
		if !strings.HasPrefix(out, fmt.Sprintf("10.87.0.%d:", i+2)) {
			t.Errorf("step %d: %q", i, out)
		}
	}
	first.stop(errStop)
	<-first.ended
	if err := provider.Close(); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"leases/steps/10.*", "net/cni/*"} {
		if left, _ := filepath.Glob(filepath.Join(dir, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// pathProvider puts steps into a namespace that has a path.
type pathProvider string

func (p pathProvider) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	return pathNamespace{ttlNamespace{&ttlProvider{}}, string(p)}, nil
}

func (p pathProvider) Close() error { return nil }

type pathNamespace struct {
	network.Namespace
	path string
}

func (n pathNamespace) Set(s *specs.Spec) error {
	if err := n.Namespace.Set(s); err != nil {
		return err
	}
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = n.path
		}
	}
	return nil
}

// A step's resolv.conf is that of the namespace that it is in.
func testResolvConf(t *testing.T, l *lab) {
	write(t, "/run/netns", "lab", "")
	if err := inNetns("", func() error {
		return unix.Mount("/proc/thread-self/ns/net", "/run/netns/lab", "", unix.MS_BIND, "")
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount("/run/netns/lab", unix.MNT_DETACH) }()
	l = l.with(t, executor.Config{Networks: map[pb.NetMode]network.Provider{
		pb.NetMode_UNSET: pathProvider("/run/netns/lab"), pb.NetMode_NONE: network.NewNoneProvider(),
		pb.NetMode_HOST: network.NewHostProvider(), 50: pathProvider("/proc/thread-self/ns/net"),
	}})
	for _, c := range []struct {
		host, behind, named string // files; empty: not there
		mode                pb.NetMode
		want, not           string
	}{
		{host: "nameserver 10.3.3.3\nsearch x.test\n", mode: pb.NetMode_HOST, want: "nameserver 10.3.3.3\nsearch x.test"},
		{host: "nameserver 10.3.3.3\nnameserver 127.0.0.1\n", mode: pb.NetMode_NONE, want: "nameserver 10.3.3.3", not: "127.0.0.1"},
		{host: "nameserver 127.0.0.53\n", behind: "nameserver 10.1.1.1\n", mode: pb.NetMode_NONE, want: "nameserver 10.1.1.1"},
		{host: "nameserver 127.0.0.53\n", behind: "nameserver 10.1.1.1\n", mode: pb.NetMode_HOST, want: "nameserver 127.0.0.53"},
		{host: "nameserver 127.0.0.53\n", behind: "nameserver 10.1.1.1\n", mode: 50, want: "nameserver 127.0.0.53"},
		{host: "nameserver 10.3.3.3\n", named: "nameserver 10.2.2.2\n", mode: pb.NetMode_UNSET, want: "nameserver 10.2.2.2"},
		{host: "nameserver 10.3.3.3\n", named: "nameserver 10.2.2.2\n", mode: pb.NetMode_HOST, want: "nameserver 10.3.3.3"},
		{host: "nameserver 10.3.3.3\n", mode: pb.NetMode_UNSET, want: "nameserver 10.3.3.3"},
		{host: "nameserver 127.0.0.1\n", mode: pb.NetMode_NONE, want: "nameserver 8.8.8.8", not: "127.0.0.1"},
		{mode: pb.NetMode_HOST, want: "nameserver 8.8.8.8"},
	} {
		for path, text := range map[string]string{
			"/etc/resolv.conf": c.host, "/run/systemd/resolve/resolv.conf": c.behind, "/etc/netns/lab/resolv.conf": c.named,
		} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if text != "" {
				write(t, filepath.Dir(path), filepath.Base(path), text)
			}
		}
		meta := sh("cat /etc/resolv.conf")
		meta.NetMode = c.mode
		out := l.must(t, rootfs(t), meta)
		if !strings.Contains(out, c.want) || c.not != "" && strings.Contains(out, c.not) {
			t.Errorf("%+v: %q", c, out)
		}
	}
}

// The profile is in the spec of a step in sandbox mode. No kernel that the
// tests run on has AppArmor: the runtime is one that only records the spec.
func testAppArmor(t *testing.T, l *lab) {
	l = l.with(t, executor.Config{
		AppArmorProfile: "steps-profile",
		Runtime:         executor.Runtime{Options: &options.Options{BinaryName: faketest.Binary(t)}},
	})
	for mode, want := range map[pb.SecurityMode]string{pb.SecurityMode_SANDBOX: "steps-profile", pb.SecurityMode_INSECURE: ""} {
		b := l.start(t, rootfs(t), bk.Meta{Args: []string{"/bin/sleep", "1000"}, Cwd: "/", SecurityMode: mode})
		c, err := l.client.LoadContainer(withNamespace(l), b.id)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := c.Spec(withNamespace(l))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "profile in mode "+mode.String(), spec.Process.ApparmorProfile, want)
		b.stop(errStop)
		<-b.ended
	}
}
