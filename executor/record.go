package executor

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/util/network"
	"github.com/prometheus/procfs"
)

// sampleEvery is the time between two samples of a step's resources.
const sampleEvery = 2 * time.Second

// recorder samples what a step uses, from its cgroup, whose path is known
// from the process that waits in it to be started. Where that cannot be seen
// there are no samples.
type recorder struct {
	cgroup func() (*resourcestypes.Sample, error) // nil: not to be seen
	net    network.Namespace
	quit   chan struct{}
	done   sync.WaitGroup

	// These belong to the sampling goroutine, after stop to whoever asks.
	samples []*resourcestypes.Sample
	before  *procfs.CPUStat
	system  *resourcestypes.SysCPUStat
}

var _ resourcestypes.Recorder = (*recorder)(nil)

func newRecorder(pid uint32, net network.Namespace) *recorder {
	r := &recorder{net: net, quit: make(chan struct{})}
	if cgroups.Mode() == cgroups.Unified {
		path, err := cgroup2.PidGroupPath(int(pid))
		if err != nil {
			return r
		}
		if m, err := cgroup2.Load(path); err == nil {
			r.cgroup = func() (*resourcestypes.Sample, error) { return sampleV2(m) }
		}
		return r
	}
	if c, err := cgroup1.Load(cgroup1.PidPath(int(pid)), quiet); err == nil {
		r.cgroup = func() (*resourcestypes.Sample, error) { return sampleV1(c) }
	}
	return r
}

// start begins to sample. [recorder.stop] ends it.
func (r *recorder) start() {
	if r.cgroup == nil {
		return
	}
	r.before = cpuNow()
	r.done.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				r.sample(now)
			case <-r.quit:
				r.sample(time.Now()) // the cgroup is still there, and its counters final
				return
			}
		}
	})
}

// stop takes the last sample.
func (r *recorder) stop() {
	close(r.quit)
	r.done.Wait()
	after := cpuNow()
	if r.before == nil || after == nil {
		return
	}
	b := r.before
	r.system = &resourcestypes.SysCPUStat{
		User: after.User - b.User, Nice: after.Nice - b.Nice, System: after.System - b.System,
		Idle: after.Idle - b.Idle, Iowait: after.Iowait - b.Iowait, IRQ: after.IRQ - b.IRQ,
		SoftIRQ: after.SoftIRQ - b.SoftIRQ, Steal: after.Steal - b.Steal,
		Guest: after.Guest - b.Guest, GuestNice: after.GuestNice - b.GuestNice,
	}
}

func cpuNow() *procfs.CPUStat {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return nil
	}
	s, err := fs.Stat()
	if err != nil {
		return nil
	}
	return &s.CPUTotal
}

func (r *recorder) sample(now time.Time) {
	s, err := r.cgroup()
	if err != nil {
		return // a cgroup that is half gone says nothing
	}
	s.Timestamp_ = now
	if net, err := r.net.Sample(); err == nil {
		s.NetStat = net
	}
	r.samples = append(r.samples, s)
}

// oomKills is how many processes the kernel killed for lack of memory.
func (r *recorder) oomKills() uint64 {
	if len(r.samples) == 0 {
		return 0
	}
	if m := r.samples[len(r.samples)-1].MemoryStat; m != nil {
		return m.OomKillEvents
	}
	return 0
}

// Start does nothing: Run started it.
func (r *recorder) Start() {}

// Close does nothing: Run ended it.
func (r *recorder) Close() {}

// CloseAsync calls next.
func (r *recorder) CloseAsync(next func(context.Context) error) error {
	return next(context.Background())
}

// Wait returns at once.
func (r *recorder) Wait() error { return nil }

// Samples returns what was recorded: one sample every two seconds, and one at
// the end of the step.
func (r *recorder) Samples() (*resourcestypes.Samples, error) {
	return &resourcestypes.Samples{Samples: r.samples, SysCPUStat: r.system}, nil
}
