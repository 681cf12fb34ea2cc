package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/urfave/cli/v3"
)

func (a *App) topCommand() *cli.Command {
	return &cli.Command{
		Name:      "top",
		Usage:     "list the processes of a container, by the host's numbers",
		ArgsUsage: "CONTAINER",
		Category:  "Containers",
		Description: `Examples:
  berth top web
  berth top --json web`,
		Flags:                  listFlags(),
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 {
				return usageError("name one container (berth top CONTAINER)")
			}
			out, err := newListing(cmd, processColumns)
			if err != nil {
				return err
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				rows, err := s.top(ctx, cmd.Args().First())
				if err != nil {
					return err
				}
				return out.show(a, rows)
			})
		},
	}
}

// processRow is one process of `berth top --json`. The names of the fields
// stay as they are.
type processRow struct {
	Pid     uint32        `json:"pid"`
	Parent  int           `json:"parent"`
	UID     uint32        `json:"uid"`
	CPU     time.Duration `json:"cpuNanoseconds"`
	Command string        `json:"command"`
}

var processColumns = columns[processRow]{
	head: []string{"PID", "PPID", "UID", "TIME", "COMMAND"},
	cells: func(r *processRow, _ bool) []string {
		return []string{
			fmt.Sprint(r.Pid), fmt.Sprint(r.Parent), fmt.Sprint(r.UID), r.CPU.Round(10 * time.Millisecond).String(), r.Command,
		}
	},
}

func (s *session) top(ctx context.Context, id string) ([]processRow, error) {
	r, err := s.client.TaskService().ListPids(ctx, &tasks.ListPidsRequest{ContainerID: id})
	if err = native(err); err != nil {
		return nil, s.taskError(ctx, id, err)
	}
	var rows []processRow
	for _, p := range r.Processes {
		if row, ok := readProcess(p.Pid); ok { // else it has ended meanwhile
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b processRow) int { return int(a.Pid) - int(b.Pid) })
	return rows, nil
}

// readProcess reads what /proc says of a process; false where it has ended.
func readProcess(pid uint32) (processRow, bool) {
	row := processRow{Pid: pid}
	dir := "/proc/" + strconv.FormatUint(uint64(pid), 10)
	data, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return row, false
	}
	// The name, in parentheses, may hold anything; field 3 follows it.
	end := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[end+1:])
	if end < 0 || len(fields) < 20 {
		return row, false
	}
	row.Parent, _ = strconv.Atoi(string(fields[1]))
	user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
	system, _ := strconv.ParseInt(string(fields[12]), 10, 64)
	row.CPU = time.Duration(user+system) * 10 * time.Millisecond
	if st, err := os.Stat(dir); err == nil {
		row.UID = st.Sys().(*syscall.Stat_t).Uid
	}
	line, _ := os.ReadFile(dir + "/cmdline")
	row.Command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	if row.Command == "" {
		row.Command = "[" + string(data[bytes.IndexByte(data, '(')+1:end]) + "]"
	}
	return row, true
}
