package executor

import (
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/cgroups/v3/cgroup2"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
)

// quiet leaves out the controllers that this machine does not have.
func quiet(c *cgroup1.InitConfig) error {
	c.InitCheck = cgroup1.AllowAny
	return nil
}

func sampleV1(c cgroup1.Cgroup) (*resourcestypes.Sample, error) {
	m, err := c.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return nil, err
	}
	s := &resourcestypes.Sample{}
	if u := m.GetCPU().GetUsage(); u != nil {
		s.CPUStat = &resourcestypes.CPUStat{UsageNanos: &u.Total, UserNanos: &u.User, SystemNanos: &u.Kernel}
		if t := m.CPU.Throttling; t != nil {
			periods, throttled := uint32(t.Periods), uint32(t.ThrottledPeriods)
			s.CPUStat.NrPeriods, s.CPUStat.NrThrottled, s.CPUStat.ThrottledNanos = &periods, &throttled, &t.ThrottledTime
		}
	}
	if m.Memory != nil {
		s.MemoryStat = memoryV1(m)
	}
	if m.Pids != nil {
		s.PIDsStat = &resourcestypes.PIDsStat{Current: &m.Pids.Current}
	}
	if m.Blkio != nil {
		s.IOStat = &resourcestypes.IOStat{}
		s.IOStat.ReadBytes, s.IOStat.WriteBytes, s.IOStat.DiscardBytes = sumV1(m.Blkio.IoServiceBytesRecursive)
		s.IOStat.ReadIOs, s.IOStat.WriteIOs, s.IOStat.DiscardIOs = sumV1(m.Blkio.IoServicedRecursive)
	}
	return s, nil
}

func memoryV1(m *v1.Metrics) *resourcestypes.MemoryStat {
	t := m.Memory
	s := &resourcestypes.MemoryStat{
		Anon: &t.TotalRSS, File: &t.TotalCache, FileMapped: &t.TotalMappedFile, FileDirty: &t.TotalDirty,
		FileWriteback: &t.TotalWriteback, Pgfault: &t.TotalPgFault, Pgmajfault: &t.TotalPgMajFault,
		OomKillEvents: m.GetMemoryOomControl().GetOomKill(),
	}
	if t.Usage != nil {
		s.Peak, s.MaxEvents = &t.Usage.Max, t.Usage.Failcnt
	}
	if t.Kernel != nil {
		s.Kernel = &t.Kernel.Usage
	}
	if t.Swap != nil && t.Usage != nil && t.Swap.Usage >= t.Usage.Usage {
		swap := t.Swap.Usage - t.Usage.Usage // v1 counts memory and swap together
		s.SwapBytes = &swap
	}
	return s
}

func sumV1(entries []*v1.BlkIOEntry) (read, write, discard *uint64) {
	var r, w, d uint64
	for _, e := range entries {
		switch strings.ToLower(e.Op) {
		case "read":
			r += e.Value
		case "write":
			w += e.Value
		case "discard":
			d += e.Value
		}
	}
	return &r, &w, &d
}

func sampleV2(c *cgroup2.Manager) (*resourcestypes.Sample, error) {
	m, err := c.Stat()
	if err != nil {
		return nil, err
	}
	s := &resourcestypes.Sample{}
	if u := m.CPU; u != nil {
		usage, user, system := u.UsageUsec*1000, u.UserUsec*1000, u.SystemUsec*1000
		periods, throttled, time := uint32(u.NrPeriods), uint32(u.NrThrottled), u.ThrottledUsec*1000
		s.CPUStat = &resourcestypes.CPUStat{
			UsageNanos: &usage, UserNanos: &user, SystemNanos: &system,
			NrPeriods: &periods, NrThrottled: &throttled, ThrottledNanos: &time, Pressure: pressure(u.PSI),
		}
	}
	if m.Memory != nil {
		s.MemoryStat = memoryV2(m)
	}
	if m.Pids != nil {
		s.PIDsStat = &resourcestypes.PIDsStat{Current: &m.Pids.Current}
	}
	if m.Io != nil {
		var rb, wb, ri, wi uint64
		for _, e := range m.Io.Usage {
			rb, wb, ri, wi = rb+e.Rbytes, wb+e.Wbytes, ri+e.Rios, wi+e.Wios
		}
		s.IOStat = &resourcestypes.IOStat{ReadBytes: &rb, WriteBytes: &wb, ReadIOs: &ri, WriteIOs: &wi, Pressure: pressure(m.Io.PSI)}
	}
	return s, nil
}

func memoryV2(m *v2.Metrics) *resourcestypes.MemoryStat {
	t, e := m.Memory, m.GetMemoryEvents()
	return &resourcestypes.MemoryStat{
		SwapBytes: &t.SwapUsage, Anon: &t.Anon, File: &t.File, KernelStack: &t.KernelStack, Sock: &t.Sock,
		Shmem: &t.Shmem, FileMapped: &t.FileMapped, FileDirty: &t.FileDirty, FileWriteback: &t.FileWriteback,
		Slab: &t.Slab, Pgscan: &t.Pgscan, Pgsteal: &t.Pgsteal, Pgfault: &t.Pgfault, Pgmajfault: &t.Pgmajfault,
		Peak: &t.MaxUsage, LowEvents: e.GetLow(), HighEvents: e.GetHigh(), MaxEvents: e.GetMax(),
		OomEvents: e.GetOom(), OomKillEvents: e.GetOomKill(), Pressure: pressure(t.PSI),
	}
}

func pressure(p *v2.PSIStats) *resourcestypes.Pressure {
	if p == nil {
		return nil
	}
	return &resourcestypes.Pressure{Some: pressureValues(p.Some), Full: pressureValues(p.Full)}
}

func pressureValues(d *v2.PSIData) *resourcestypes.PressureValues {
	if d == nil {
		return nil
	}
	return &resourcestypes.PressureValues{Avg10: &d.Avg10, Avg60: &d.Avg60, Avg300: &d.Avg300, Total: &d.Total}
}
