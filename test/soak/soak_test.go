// Package soak runs many execs and many containers in one shim and looks at what
// they leave in its memory, in its guard's and in the daemon's. In make test it is
// short; make soak gives it the flags.
package soak

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/harness"
)

var (
	execs  = flag.Int("execs", 400, "`NUMBER` of execs with the fake runtime")
	cycles = flag.Int("cycles", 20, "`NUMBER` of containers with the fake runtime; with runc a twentieth of both, at least 5")
	idle   = flag.Duration("idle", 5*time.Second, "`TIME` for which wake-ups of the idle shim are counted")
)

const (
	atOnce = 4
	// long is the number of execs from which on a run tells of memory.
	long = 10000
	// maxGrowth is what the shim may grow by in KiB in a long run: pages that the
	// allocator keeps.
	maxGrowth = 1024
	// warmUp is what it may grow by in a short run. That one ends before the heap has
	// seen the collections after which its size stands; it is there for leaks of fds,
	// goroutines and threads, and of memory by the 10 KiB a process.
	warmUp = 4096
	// moreThreads are threads that a busy moment may add; Go keeps them.
	moreThreads = 12
	// passing are goroutines that a sample may catch at work.
	passing = 2
)

func TestMain(m *testing.M) { os.Exit(faketest.Run(m)) }

// soak is a daemon with one shim, which a container that goes on keeps alive.
type soak struct {
	*harness.Daemon
	client *containerd.Client
	ctx    context.Context
	fake   string
	n      atomic.Int64 // processes so far
	ids    atomic.Int64
}

func TestSoak(t *testing.T) {
	d := harness.Start(t, harness.Config{NoImage: true})
	s := &soak{
		Daemon: d, client: d.Client(t), fake: faketest.Binary(t),
		ctx: namespaces.WithNamespace(t.Context(), d.Namespace),
	}
	rootfs := harness.Rootfs(t)
	fake, stopFake := s.run(t, s.fake, fakeSpec)
	real, stopReal := s.run(t, d.Programs.Runc, realSpec(rootfs))
	shims, guards := d.Shims(), d.Guards()
	if len(shims) != 1 || len(guards) != 1 {
		t.Fatalf("shims %v, guards %v: want one of each", shims, guards)
	}
	phase := func(scale int) {
		s.parallel(t, *execs/scale, func() error { return s.exec(fake) })
		s.parallel(t, *cycles/scale, func() error { return s.cycle(s.fake, fakeSpec) })
		s.parallel(t, max(5, *execs/20/scale), func() error { return s.exec(real) })
		s.parallel(t, max(5, *cycles/20/scale), func() error { return s.cycle(d.Programs.Runc, realSpec(rootfs)) })
	}
	phase(10) // what is made once is made
	names := []string{"shim", "guard", "berthd"}
	pids := []int{shims[0], guards[0], d.PID()}
	take := func() []sample {
		var all []sample
		for i, pid := range pids {
			all = append(all, measure(t, pid))
			if i == 0 {
				all[0].goroutines = goroutines(t, d, pid)
			}
			t.Logf("after %7d processes: %-6s %s", s.n.Load(), names[i], all[i])
		}
		return all
	}
	take() // the shim keeps the memory in which it tells its stacks
	before := take()
	parts := 4 + *execs/long // of a long run one sees how it goes
	for range parts - 1 {
		phase(parts)
		take()
	}
	phase(parts)
	after := take()
	limit := maxGrowth
	if *execs < long {
		limit = warmUp
	}
	for i, name := range names {
		a, b := before[i], after[i]
		if b.fds > a.fds || b.threads > a.threads+moreThreads || b.goroutines > a.goroutines+passing {
			t.Errorf("%s: %s\nbefore: %s", name, b, a)
		}
		if grown := b.private - a.private; name != "berthd" && grown >= limit {
			t.Errorf("%s: grew by %d KiB", name, grown)
		}
	}
	if got := d.Shims(); len(got) != 1 || got[0] != shims[0] {
		t.Errorf("shims %v, was %v: not one shim for all", got, shims)
	}
	s.sleep(t, shims[0], guards[0])
	stopFake()
	stopReal()
}

// sleep counts wake-ups of shim and guard while they have containers and nothing
// to do. Go's runtime itself wakes a thread now and then, at the latest for the
// collection that it makes every two minutes.
func (s *soak) sleep(t *testing.T, shim, guard int) {
	t.Helper()
	a, b := wakeups(t, shim), wakeups(t, guard)
	time.Sleep(*idle) // what is measured is this time
	a, b = wakeups(t, shim)-a, wakeups(t, guard)-b
	t.Logf("wake-ups in %s without work: shim %d, guard %d", *idle, a, b)
	if limit := 10 + int(*idle/time.Second)/2; a > limit || b > limit {
		t.Errorf("an idle shim or guard wakes up: %d and %d times in %s", a, b, *idle)
	}
}

// parallel calls fn n times, some at once.
func (s *soak) parallel(t *testing.T, n int, fn func() error) {
	t.Helper()
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	for range atOnce {
		wg.Go(func() {
			for left.Add(-1) >= 0 && !t.Failed() {
				s.n.Add(1)
				if err := fn(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// specFunc makes the spec of a container with that command.
type specFunc func(id, script string) *specs.Spec

func fakeSpec(_, script string) *specs.Spec { return faketest.Spec("/bin/sh", "-c", script) }

func realSpec(rootfs string) specFunc {
	return func(id, script string) *specs.Spec {
		spec := faketest.Spec("/bin/sh", "-c", script)
		spec.Root = &specs.Root{Path: rootfs, Readonly: true}
		for _, ns := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace} {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
		}
		spec.Linux.CgroupsPath = "/soak-" + id
		spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
		spec.Mounts = []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		}
		return spec
	}
}

// create makes a container and its task.
func (s *soak) create(binary string, spec specFunc, script string) (containerd.Container, containerd.Task, error) {
	id := s.ID(fmt.Sprint(s.ids.Add(1)))
	fixed := func(_ context.Context, _ oci.Client, _ *containers.Container, o *oci.Spec) error {
		*o = *spec(id, script)
		return nil
	}
	c, err := s.client.NewContainer(s.ctx, id, containerd.WithSpec(&oci.Spec{}, fixed),
		containerd.WithRuntime("io.containerd.berth.v2", &options.Options{BinaryName: binary}))
	if err != nil {
		return nil, nil, err
	}
	task, err := c.NewTask(s.ctx, cio.NullIO)
	return c, task, err
}

// run starts a container that goes on until it is told to stop.
func (s *soak) run(t *testing.T, binary string, spec specFunc) (task containerd.Task, stop func()) {
	t.Helper()
	c, task, err := s.create(binary, spec, "while :; do sleep 3600; done")
	if err == nil {
		err = task.Start(s.ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return task, func() {
		if _, err := task.Delete(s.ctx, containerd.WithProcessKill); err != nil {
			t.Error(err)
		}
		if err := c.Delete(s.ctx); err != nil {
			t.Error(err)
		}
	}
}

// cycle is a container's whole life.
func (s *soak) cycle(binary string, spec specFunc) error {
	c, task, err := s.create(binary, spec, "exit 3")
	if err != nil {
		return err
	}
	if err := s.life(task); err != nil {
		return err
	}
	return c.Delete(s.ctx)
}

// exec is the whole life of a process in the container.
func (s *soak) exec(task containerd.Task) error {
	process, err := task.Exec(s.ctx, fmt.Sprintf("e%d", s.ids.Add(1)), faketest.Process("/bin/sh", "-c", "exit 3"), cio.NullIO)
	if err != nil {
		return err
	}
	return s.life(process)
}

func (s *soak) life(p containerd.Process) error {
	exits, err := p.Wait(s.ctx)
	if err != nil {
		return err
	}
	if err := p.Start(s.ctx); err != nil {
		return err
	}
	exit := <-exits
	if code, _, err := exit.Result(); err != nil || code != 3 {
		return fmt.Errorf("%s ended with %d, %w", p.ID(), code, err)
	}
	_, err = p.Delete(s.ctx)
	return err
}
