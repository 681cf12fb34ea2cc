package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func (a *App) psCommand() *cli.Command {
	return &cli.Command{
		Name:     "ps",
		Aliases:  []string{"containers"},
		Usage:    "list containers",
		Category: "Containers",
		Description: `Examples:
  berth ps                 # what runs
  berth ps -a --json       # everything, for a program
  berth ps -aq --filter status=exited --filter label=app=web
  berth ps --format '{{.id}} {{.labels.app}}'`,
		Flags: listFlags(
			yes("all", "also those that do not run", "a"),
			list("filter", "a `FILTER`: "+containerFilters.help()+"; or containerd's, e.g. image==NAME", "f"),
		),
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return usageError("ps takes no arguments (see berth inspect)")
			}
			out, err := newListing(cmd, containerColumns(time.Now()))
			if err != nil {
				return err
			}
			filter, err := containerFilters.parse(cmd.StringSlice("filter"))
			if err != nil {
				return err
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				rows, err := s.listContainers(ctx, filter.native...)
				if err != nil {
					return err
				}
				if rows, err = keepContainers(rows, filter, cmd.Bool("all")); err != nil {
					return err
				}
				return out.show(a, rows)
			})
		},
	}
}

// containerRow is one container of `berth ps --json`. The names of the fields
// stay as they are.
type containerRow struct {
	ID       string            `json:"id"`
	Image    string            `json:"image"`
	Command  []string          `json:"command"`
	Created  time.Time         `json:"created"`
	Status   string            `json:"status"` // created, running, paused, exited or unknown
	Pid      uint32            `json:"pid,omitempty"`
	ExitCode *uint32           `json:"exitCode,omitempty"`
	ExitedAt *time.Time        `json:"exitedAt,omitempty"`
	Runtime  string            `json:"runtime"`
	Labels   map[string]string `json:"labels"`
	// LogFile is the log of a container in the background.
	LogFile string `json:"logFile,omitempty"`
}

// listContainers returns the containers that one of containerd's filters holds
// for, the newest first.
func (s *session) listContainers(ctx context.Context, filters ...string) ([]containerRow, error) {
	var (
		list  []containers.Container
		procs = make(map[string]*tasktypes.Process)
		g     errgroup.Group
	)
	g.Go(func() (err error) {
		list, err = s.client.ContainerService().List(ctx, filters...)
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		r, err := s.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			return fmt.Errorf("list tasks: %w", native(err))
		}
		for _, p := range r.Tasks {
			procs[firstOf(p.ContainerID, p.ID)] = p
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	rows := make([]containerRow, len(list))
	for i := range list {
		rows[i] = describeContainer(&list[i], procs[list[i].ID])
	}
	slices.SortStableFunc(rows, func(a, b containerRow) int { return b.Created.Compare(a.Created) })
	return rows, nil
}

// alive says that the container has processes.
func (r *containerRow) alive() bool {
	return r.Status == "running" || r.Status == "paused" || r.Status == "pausing"
}

// describeContainer joins a container's record and its task, nil for none.
func describeContainer(c *containers.Container, p *tasktypes.Process) containerRow {
	row := containerRow{
		ID: c.ID, Image: c.Image, Created: c.CreatedAt, Status: "created",
		Runtime: c.Runtime.Name, Labels: c.Labels, Command: []string{},
	}
	if row.Labels == nil {
		row.Labels = map[string]string{}
	}
	// A damaged specification or note costs its column, not the list.
	if spec, err := containerSpec(c); err == nil && spec.Process.Args != nil {
		row.Command = spec.Process.Args
	}
	r, _ := readRecord(c)
	row.LogFile = logPath(r.Log)
	switch {
	case p != nil:
		row.Status, row.Pid = statusWord(p.Status), p.Pid
		if p.Status == tasktypes.Status_STOPPED {
			at := protobuf.FromTimestamp(p.ExitedAt)
			row.ExitCode, row.ExitedAt, row.Pid = &p.ExitStatus, &at, 0
		}
	case r.Exit != nil:
		row.Status, row.ExitCode, row.ExitedAt = "exited", &r.Exit.Status, &r.Exit.At
	case r.Detached:
		// It was started, and its task went without a status: a reboot.
		row.Status = "exited"
	}
	return row
}

// containerColumns are the table of ps, in docker's words.
func containerColumns(now time.Time) columns[containerRow] {
	return columns[containerRow]{
		head: []string{"CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS"},
		cells: func(r *containerRow, full bool) []string {
			image, command := r.Image, strings.Join(r.Command, " ")
			if !full {
				image, command = cut(image, 40), cut(command, 30)
			}
			return []string{r.ID, image, strconv.Quote(command), ago(r.Created, now), statusText(r, now)}
		},
	}
}

// statusText is the status in docker's words.
func statusText(r *containerRow, now time.Time) string {
	switch r.Status {
	case "exited":
		if r.ExitCode == nil {
			return "Exited"
		}
		return fmt.Sprintf("Exited (%d) %s", *r.ExitCode, ago(*r.ExitedAt, now))
	case "running", "paused", "pausing":
		text := "Up"
		if t := processStart(r.Pid, now); !t.IsZero() {
			text += " " + span(now.Sub(t))
		}
		if r.Status != "running" {
			text += " (Paused)"
		}
		return text
	}
	return strings.ToUpper(r.Status[:1]) + r.Status[1:]
}

// processStart is when a process of this host began, zero where that cannot be
// learned. The engine's API does not tell.
func processStart(pid uint32, now time.Time) time.Time {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}
	}
	// The name, in parentheses, may hold anything; field 3 follows it.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return time.Time{}
	}
	ticks, err := strconv.ParseInt(string(fields[19]), 10, 64)
	var boot unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return time.Time{}
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go runs on
	return now.Add(time.Duration(ticks)*tick - time.Duration(boot.Nano()))
}
