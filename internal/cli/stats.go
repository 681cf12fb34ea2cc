package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/urfave/cli/v3"
)

func (a *App) statsCommand() *cli.Command {
	return &cli.Command{
		Name:      "stats",
		Usage:     "show what containers use",
		ArgsUsage: "[CONTAINER…]",
		Category:  "Containers",
		Description: `Without a name, every container that runs. Goes on until interrupted, unless
--no-stream, --json or --quiet is given or the output is no terminal. Examples:
  berth stats
  berth stats --no-stream --json web`,
		Flags: listFlags(
			yes("no-stream", "print once"),
			&cli.DurationFlag{Name: "interval", Value: 2 * time.Second, Usage: "`TIME` between two looks"},
		),
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			every := cmd.Duration("interval")
			if every < 100*time.Millisecond || every > time.Hour {
				return usageError("--interval %s: use 100ms to 1h", every)
			}
			out, err := newListing(cmd, usageColumns)
			if err != nil {
				return err
			}
			once := out.asJSON || out.quiet || cmd.Bool("no-stream") || !draws(a.Stdout)
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.stats(ctx, cmd.Args().Slice(), every, once, out)
			})
		},
	}
}

// usage is what one container uses, in `berth stats --json`. The names of the
// fields stay as they are.
type usage struct {
	ID string `json:"id"`
	// CPU is nanoseconds since the start, Percent of one processor now.
	CPU     uint64  `json:"cpuNanoseconds"`
	Percent float64 `json:"cpuPercent"`
	Memory  uint64  `json:"memoryBytes"`
	Limit   uint64  `json:"memoryLimitBytes,omitempty"`
	Pids    uint64  `json:"pids"`
	MaxPids uint64  `json:"maxPids,omitempty"`

	at time.Time
}

// stats prints twice where it prints once: processor time is a difference.
func (s *session) stats(ctx context.Context, ids []string, every time.Duration, once bool, out *listing[usage]) error {
	before, err := s.usages(ctx, ids)
	if err != nil {
		return err
	}
	if once {
		every = min(every, 500*time.Millisecond)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
		now, err := s.usages(ctx, ids)
		if err != nil {
			return err
		}
		for id, u := range now {
			if b, ok := before[id]; ok && u.CPU >= b.CPU && u.at.After(b.at) {
				u.Percent = 100 * float64(u.CPU-b.CPU) / float64(u.at.Sub(b.at))
			}
		}
		before = now
		if !once {
			s.printf("\x1b[H\x1b[J")
		}
		var rows []usage
		for _, id := range slices.Sorted(maps.Keys(now)) {
			rows = append(rows, *now[id])
		}
		if err := out.show(s.App, rows); err != nil || once {
			return err
		}
	}
}

var usageColumns = columns[usage]{
	head: []string{"CONTAINER ID", "CPU", "MEMORY", "LIMIT", "PIDS", "LIMIT"},
	cells: func(u *usage, _ bool) []string {
		limit, most := "-", "-"
		if u.Limit > 0 {
			limit = size(int64(u.Limit))
		}
		if u.MaxPids > 0 {
			most = fmt.Sprint(u.MaxPids)
		}
		return []string{u.ID, fmt.Sprintf("%.2f%%", u.Percent), size(int64(u.Memory)), limit, fmt.Sprint(u.Pids), most}
	},
}

// usages reads the cgroups of containers; of those that run where none is
// named.
func (s *session) usages(ctx context.Context, ids []string) (map[string]*usage, error) {
	all := map[string]*usage{}
	var filters []string
	for _, id := range ids {
		filters = append(filters, "id=="+id)
	}
	r, err := s.client.TaskService().Metrics(ctx, &tasks.MetricsRequest{Filters: filters})
	if err = native(err); err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	for _, m := range r.Metrics {
		if len(ids) > 0 && !slices.Contains(ids, m.ID) {
			continue
		}
		if u, err := readUsage(m); err != nil {
			return nil, err
		} else if u != nil {
			all[m.ID] = u
		}
	}
	for _, id := range ids {
		if all[id] == nil {
			return nil, s.taskError(ctx, id, errdefs.ErrNotFound)
		}
	}
	return all, nil
}

// noLimit is what cgroup v1 shows for none: the largest number of pages.
const noLimit = 1 << 62

// readUsage understands both versions of cgroups; nil for a task that has none.
func readUsage(m *types.Metric) (*usage, error) {
	if m.Data == nil {
		return nil, nil
	}
	data, err := typeurl.UnmarshalAny(m.Data)
	if err != nil {
		return nil, fmt.Errorf("container %q: statistics: %w", m.ID, err)
	}
	u := &usage{ID: m.ID, at: time.Now()}
	if m.Timestamp != nil {
		u.at = m.Timestamp.AsTime()
	}
	switch d := data.(type) {
	case *v1.Metrics:
		u.CPU = d.GetCPU().GetUsage().GetTotal()
		mem := d.GetMemory()
		u.Memory, u.Limit = mem.GetUsage().GetUsage()-min(mem.GetUsage().GetUsage(), mem.GetTotalInactiveFile()), mem.GetUsage().GetLimit()
		u.Pids, u.MaxPids = d.GetPids().GetCurrent(), d.GetPids().GetLimit()
	case *v2.Metrics:
		u.CPU = d.GetCPU().GetUsageUsec() * 1000
		mem := d.GetMemory()
		u.Memory, u.Limit = mem.GetUsage()-min(mem.GetUsage(), mem.GetInactiveFile()), mem.GetUsageLimit()
		u.Pids, u.MaxPids = d.GetPids().GetCurrent(), d.GetPids().GetLimit()
	default:
		return nil, fmt.Errorf("container %q: statistics of an unknown kind, %s", m.ID, m.Data.GetTypeUrl())
	}
	if u.Limit >= noLimit {
		u.Limit = 0
	}
	return u, nil
}
