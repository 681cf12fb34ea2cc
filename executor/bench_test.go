package executor_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"

	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/test/harness"
)

// runcLab is BuildKit's executor that calls runc by itself.
func runcLab(b testing.TB) *lab {
	dir, err := os.MkdirTemp("/tmp", "bx-")
	if err != nil {
		b.Fatal(err)
	}
	namespace := "x" + identity.NewID()[:8]
	b.Cleanup(func() {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + namespace + "/buildkit") // the pattern is well formed
		for _, g := range groups {
			_ = os.Remove(g) // the executor's own; one in use is found below
		}
		harness.CheckLeft(b, dir, namespace)
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	monitor, err := resources.NewMonitor()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := monitor.Close(); err != nil {
			b.Error(err)
		}
	})
	host := network.NewHostProvider()
	x, err := runcexecutor.New(runcexecutor.Opt{
		Root: filepath.Join(dir, "executor"), CommandCandidates: []string{"runc"},
		DefaultCgroupParent: namespace, ProcessMode: oci.ProcessSandbox, ResourceMonitor: monitor,
	}, map[pb.NetMode]network.Provider{pb.NetMode_UNSET: host, pb.NetMode_HOST: host, pb.NetMode_NONE: network.NewNoneProvider()})
	if err != nil {
		b.Fatal(err)
	}
	return &lab{Executor: x, peer: true, namespace: namespace, root: dir}
}

// BenchmarkStep times a build step of `true` on each executor: -benchtime 100x.
func BenchmarkStep(b *testing.B) {
	root := rootfs(b)
	step := func(name string, l *lab) harness.Variant {
		return harness.Variant{Name: name, Do: func() error { return l.run(b.Context(), root, sh("true")).failed }}
	}
	harness.Compare(b, "step", []harness.Variant{
		step("stock", peerLab(b)),
		step("berth-on-stock", daemonLab(b, harness.Stock, executor.Config{})),
		step("berthd", daemonLab(b, harness.Berth, executor.Config{})),
		step("engine", engineLab(b, executor.Config{})),
		step("runc", runcLab(b)),
	})
}
