package api

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/task"
)

// Get returns the state of a process.
func (s *Tasks) Get(ctx context.Context, r *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	p, err := s.process(ctx, r.ContainerID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	state, err := s.state(ctx, p)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &tasksapi.GetResponse{Process: processProto(state)}, nil
}

func (s *Tasks) state(ctx context.Context, p task.Process) (task.State, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StateTimeout)
	defer cancel()
	return p.State(ctx)
}

// List returns the tasks of the caller's namespace, ordered by id. The filter
// knows id, namespace and status; containerd ignores it.
func (s *Tasks) List(ctx context.Context, r *tasksapi.ListTasksRequest) (*tasksapi.ListTasksResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	var wanted []string
	if r.Filter != "" {
		wanted = append(wanted, r.Filter)
	}
	filter, err := filters.ParseAll(wanted...)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("task filter: %w", err))
	}
	tasks, err := s.cfg.Runner.List(ctx, ns)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	states := make([]*taskapi.Process, len(tasks))
	s.each(tasks, func(i int, t task.Task) {
		state, err := s.state(ctx, t)
		switch {
		case errdefs.IsNotFound(err): // deleted meanwhile
		case err != nil:
			s.cfg.Log.WarnContext(ctx, "task left out of the list", slog.String("task", t.ID().String()), slog.Any("error", err))
		default:
			states[i] = processProto(state)
		}
	})
	resp := &tasksapi.ListTasksResponse{}
	for _, p := range states {
		if p != nil && filter.Match(stateFields(ns, p)) {
			resp.Tasks = append(resp.Tasks, p)
		}
	}
	return resp, nil
}

// each calls f for every task, some at a time: one that does not answer keeps
// its own place only.
func (s *Tasks) each(tasks []task.Task, f func(i int, t task.Task)) {
	var g errgroup.Group
	g.SetLimit(parallelStates)
	for i, t := range tasks {
		g.Go(func() error {
			f(i, t)
			return nil
		})
	}
	_ = g.Wait() // f returns no error
}

func stateFields(ns string, p *taskapi.Process) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		switch path[0] {
		case "id":
			return p.ID, true
		case "namespace":
			return ns, true
		case "status":
			return p.Status.String(), true
		}
		return "", false
	})
}

func processProto(state task.State) *taskapi.Process {
	p := &taskapi.Process{
		ContainerID: state.ID.Container,
		ID:          state.ID.Container,
		Pid:         state.Pid,
		Status:      statusProto(state.Status),
		Stdin:       state.Stdio.Stdin,
		Stdout:      state.Stdio.Stdout,
		Stderr:      state.Stdio.Stderr,
		Terminal:    state.Stdio.Terminal,
	}
	if state.ExecID != "" {
		p.ID = state.ExecID
	}
	var exited time.Time
	if state.Exit != nil {
		p.ExitStatus = state.Exit.Status
		exited = state.Exit.At
	}
	p.ExitedAt = timestamppb.New(exited)
	return p
}

// statusProto translates a status. A state that is only known from earlier
// (task.State.Stale) keeps its status: it is the best answer there is.
func statusProto(s task.Status) taskapi.Status {
	switch s {
	case task.Created, task.CreatedCheckpoint:
		return taskapi.Status_CREATED
	case task.Running:
		return taskapi.Status_RUNNING
	case task.Paused:
		return taskapi.Status_PAUSED
	case task.Pausing:
		return taskapi.Status_PAUSING
	case task.Stopped, task.Deleted:
		return taskapi.Status_STOPPED
	default:
		return taskapi.Status_UNKNOWN
	}
}

// ListPids returns the processes of a container; those that are the first of
// an exec carry its id.
func (s *Tasks) ListPids(ctx context.Context, r *tasksapi.ListPidsRequest) (*tasksapi.ListPidsResponse, error) {
	t, err := s.find(ctx, r.ContainerID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	pids, err := t.Pids(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp := &tasksapi.ListPidsResponse{Processes: make([]*taskapi.ProcessInfo, 0, len(pids))}
	for _, p := range pids {
		info := &taskapi.ProcessInfo{Pid: p.Pid}
		if p.ExecID != "" {
			if info.Info, err = typeurl.MarshalAnyToProto(&runcoptions.ProcessDetails{ExecID: p.ExecID}); err != nil {
				return nil, errgrpc.ToGRPC(fmt.Errorf("details of process %d: %w", p.Pid, err))
			}
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// Metrics returns the statistics of the namespace's tasks whose id or
// namespace match any of the filters. Tasks without statistics are left out.
func (s *Tasks) Metrics(ctx context.Context, r *tasksapi.MetricsRequest) (*tasksapi.MetricsResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	filter, err := filters.ParseAll(r.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("metrics filter: %w", err))
	}
	tasks, err := s.cfg.Runner.List(ctx, ns)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	matched := tasks[:0:0]
	for _, t := range tasks {
		if filter.Match(idFields(t.ID())) {
			matched = append(matched, t)
		}
	}
	metrics := make([]*types.Metric, len(matched))
	s.each(matched, func(i int, t task.Task) {
		at := time.Now()
		stats, err := t.Stats(ctx)
		switch {
		case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err): // ended, or not started
		case err != nil:
			s.cfg.Log.WarnContext(ctx, "task without metrics", slog.String("task", t.ID().String()), slog.Any("error", err))
		default:
			metrics[i] = &types.Metric{Timestamp: timestamppb.New(at), ID: t.ID().Container, Data: toAny(stats)}
		}
	})
	resp := &tasksapi.MetricsResponse{}
	for _, m := range metrics {
		if m != nil {
			resp.Metrics = append(resp.Metrics, m)
		}
	}
	return resp, nil
}

func idFields(id task.ID) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		switch path[0] {
		case "id":
			return id.Container, true
		case "namespace":
			return id.Namespace, true
		}
		return "", false
	})
}
