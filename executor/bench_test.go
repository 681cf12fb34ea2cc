package executor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

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

// BenchmarkStep times a build step of `true` on each executor. All take turns in
// every round, so that what else the machine does falls on all alike; a metric is
// the median of the rounds. One iteration is one round: -benchtime 100x.
func BenchmarkStep(b *testing.B) {
	root := rootfs(b)
	labs := []struct {
		name string
		lab  *lab
	}{
		{"stock", peerLab(b)},
		{"berth-on-stock", daemonLab(b, harness.Stock, executor.Config{})},
		{"berthd", daemonLab(b, harness.Berth, executor.Config{})},
		{"engine", engineLab(b, executor.Config{})},
		{"runc", runcLab(b)},
	}
	took := make([][]time.Duration, len(labs))
	step := func(i int) time.Duration {
		begin := time.Now()
		labs[i].lab.must(b, root, sh("true"))
		return time.Since(begin)
	}
	for i := range labs {
		step(i) // what is made once is made
	}
	for round := 0; b.Loop(); round++ {
		for i := range labs {
			i = (i + round) % len(labs)
			took[i] = append(took[i], step(i))
		}
	}
	var stock time.Duration
	for i, l := range labs {
		slices.Sort(took[i])
		median := took[i][len(took[i])/2]
		if i == 0 {
			stock = median
		}
		ms := float64(median) / float64(time.Millisecond)
		b.ReportMetric(ms, l.name+"-ms/step")
		fmt.Fprintf(os.Stderr, "%-16s %6.1f ms  %.2f\n", l.name, ms, float64(median)/float64(stock))
	}
}
