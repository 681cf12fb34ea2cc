package executor

import (
	"context"
	"errors"
	"fmt"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/buildkit/executor"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Exec runs another program in a step and waits for its end. A step that is
// still being made is waited for. What is empty in the program's description
// is as in the step's; a user by name is looked up in the step's root file
// system. It closes process.Stdin. An id of no step is NotFound.
//
// A cancelled context ends the program, not the step.
func (e *Executor) Exec(ctx context.Context, id string, process executor.ProcessInfo) (err error) {
	if process.Stdin != nil {
		defer process.Stdin.Close()
	}
	e.mu.Lock()
	s := e.steps[id]
	e.mu.Unlock()
	if s == nil {
		return fmt.Errorf("no step %s: %w", id, errdefs.ErrNotFound)
	}
	select {
	case <-s.running:
	case <-s.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.addExec(); err != nil {
		return err
	}
	defer s.execs.Done()
	spec, err := execSpec(s, process.Meta)
	if err != nil {
		return fmt.Errorf("exec in step %s: %w", id, err)
	}
	return e.runExec(namespaces.WithNamespace(ctx, e.cfg.Namespace), s, spec, process)
}

func (e *Executor) runExec(ctx context.Context, s *step, spec *specs.Process, info executor.ProcessInfo) (err error) {
	p, err := e.openProcess(s.id, identity.NewID(), info)
	if err != nil {
		return fmt.Errorf("exec in step %s: %w", s.id, err)
	}
	defer p.close()
	if err := p.add(ctx, spec); err != nil {
		return fmt.Errorf("exec in step %s: %w", s.id, err)
	}
	defer func() {
		if derr := p.remove(ctx); derr != nil {
			err = errors.Join(err, fmt.Errorf("delete exec in step %s: %w", s.id, derr))
		}
	}()
	x, err := p.run(ctx, nil)
	switch {
	case err != nil && x == (exit{}):
		return fmt.Errorf("exec in step %s: %w", s.id, err)
	case x.good(info.Meta.ValidExitCodes):
		return nil
	}
	return &gatewayapi.ExitError{ExitCode: x.code, Err: err}
}

// execSpec is the step's own process with what is asked for instead.
func execSpec(s *step, meta executor.Meta) (*specs.Process, error) {
	spec := *s.spec.Process
	spec.Args, spec.Terminal = meta.Args, meta.Tty
	if meta.Proxy != nil && len(meta.Env) > 0 {
		meta.Env = executor.ReplaceEnv(meta.Env, network.FilterProxyEnv(spec.Env))
	}
	if len(meta.Env) > 0 {
		spec.Env = meta.Env
	}
	if meta.Cwd != "" {
		spec.Cwd = meta.Cwd
	}
	u, err := lookupUser(s.root, meta.User)
	if err != nil {
		return nil, err
	}
	if meta.User != "" {
		spec.User = u
	}
	return &spec, nil
}

// add makes the exec, which waits to be started.
func (p *process) add(ctx context.Context, spec *specs.Process) error {
	ctx, cancel := p.e.callContext(ctx)
	defer cancel()
	any, err := typeurl.MarshalAnyToProto(spec)
	if err != nil {
		return err
	}
	c := p.io.Config()
	_, err = p.e.client.TaskService().Exec(ctx, &tasksapi.ExecProcessRequest{
		ContainerID: p.container, ExecID: p.exec, Spec: any,
		Terminal: c.Terminal, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr,
	})
	return native(err)
}

// remove deletes the exec; one of a step that is gone went with it.
func (p *process) remove(ctx context.Context) error {
	ctx, cancel := p.e.callContext(ctx)
	defer cancel()
	_, err := p.e.client.TaskService().DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: p.container, ExecID: p.exec})
	if err = native(err); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
