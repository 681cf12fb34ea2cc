package supervisor

import (
	"context"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/task"
)

// ask passes a question that has a bound.
func (c *Sandboxes) ask(ctx context.Context, name, method string, req, resp proto.Message) error {
	id, err := sandboxID(ctx, name)
	if err != nil {
		return err
	}
	return c.callBounded(ctx, id, method, req, resp)
}

// Start starts a created sandbox. One that does not start is removed.
func (c *Sandboxes) Start(ctx context.Context, name string) (sandbox.ControllerInstance, error) {
	id, err := sandboxID(ctx, name)
	if err != nil {
		return sandbox.ControllerInstance{}, err
	}
	result, err := c.endpoint(id)
	if err != nil {
		return sandbox.ControllerInstance{}, err
	}
	resp := &sandboxapi.StartSandboxResponse{}
	if err := c.callBounded(ctx, id, "StartSandbox", &sandboxapi.StartSandboxRequest{SandboxID: name}, resp); err != nil {
		return sandbox.ControllerInstance{}, alsoFailed(err, c.Shutdown(ctx, name))
	}
	instance := sandbox.ControllerInstance{
		SandboxID: name, Pid: resp.Pid, CreatedAt: timeOf(resp.CreatedAt),
		Address: result.Protocol + "+" + result.Address, Version: uint32(result.Version),
	}
	if resp.Spec != nil {
		instance.Spec = resp.Spec
	}
	return instance, nil
}

// Platform says for which platform the sandbox's containers are to be.
func (c *Sandboxes) Platform(ctx context.Context, name string) (imagespec.Platform, error) {
	resp := &sandboxapi.PlatformResponse{}
	if err := c.ask(ctx, name, "Platform", &sandboxapi.PlatformRequest{SandboxID: name}, resp); err != nil {
		return imagespec.Platform{}, err
	}
	p := resp.GetPlatform()
	return imagespec.Platform{OS: p.GetOS(), Architecture: p.GetArchitecture(), Variant: p.GetVariant()}, nil
}

// Stop stops the sandbox; one that is gone is stopped.
func (c *Sandboxes) Stop(ctx context.Context, name string, opts ...sandbox.StopOpt) error {
	var options sandbox.StopOptions
	for _, opt := range opts {
		opt(&options)
	}
	req := &sandboxapi.StopSandboxRequest{SandboxID: name}
	if options.Timeout != nil {
		req.TimeoutSecs = uint32(max(*options.Timeout, 0) / time.Second)
	}
	err := c.ask(ctx, name, "StopSandbox", req, &sandboxapi.StopSandboxResponse{})
	if errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) {
		return nil
	}
	return err
}

// Wait returns when the sandbox has ended.
func (c *Sandboxes) Wait(ctx context.Context, name string) (sandbox.ExitStatus, error) {
	id, err := sandboxID(ctx, name)
	if err != nil {
		return sandbox.ExitStatus{}, err
	}
	resp := &sandboxapi.WaitSandboxResponse{}
	if err := c.call(ctx, id, "WaitSandbox", &sandboxapi.WaitSandboxRequest{SandboxID: name}, resp); err != nil {
		return sandbox.ExitStatus{}, err
	}
	return sandbox.ExitStatus{ExitStatus: resp.ExitStatus, ExitedAt: timeOf(resp.ExitedAt)}, nil
}

// Status says how the sandbox is; one that is not there has ended now.
func (c *Sandboxes) Status(ctx context.Context, name string, verbose bool) (sandbox.ControllerStatus, error) {
	id, err := sandboxID(ctx, name)
	if err != nil {
		return sandbox.ControllerStatus{}, err
	}
	result, err := c.endpoint(id)
	if errdefs.IsNotFound(err) {
		return sandbox.ControllerStatus{SandboxID: name, ExitedAt: time.Now()}, nil
	}
	if err != nil {
		return sandbox.ControllerStatus{}, err
	}
	resp := &sandboxapi.SandboxStatusResponse{}
	if err := c.callBounded(ctx, id, "SandboxStatus", &sandboxapi.SandboxStatusRequest{SandboxID: name, Verbose: verbose}, resp); err != nil {
		return sandbox.ControllerStatus{}, err
	}
	status := sandbox.ControllerStatus{
		SandboxID: resp.SandboxID, Pid: resp.Pid, State: resp.State, Info: resp.Info,
		CreatedAt: timeOf(resp.CreatedAt), ExitedAt: timeOf(resp.ExitedAt),
		Address: result.Protocol + "+" + result.Address, Version: uint32(result.Version),
	}
	if resp.Extra != nil {
		status.Extra = resp.Extra
	}
	return status, nil
}

// Metrics gives the sandbox's statistics.
func (c *Sandboxes) Metrics(ctx context.Context, name string) (*types.Metric, error) {
	resp := &sandboxapi.SandboxMetricsResponse{}
	err := c.ask(ctx, name, "SandboxMetrics", &sandboxapi.SandboxMetricsRequest{SandboxID: name}, resp)
	return resp.Metrics, err
}

// Update tells the shim of a change of the sandbox's record. Not every shim
// takes it: NotImplemented.
func (c *Sandboxes) Update(ctx context.Context, name string, record sandbox.Sandbox, fields ...string) error {
	req := &sandboxapi.UpdateSandboxRequest{SandboxID: name, Sandbox: sandbox.ToProto(&record), Fields: fields}
	return c.ask(ctx, name, "UpdateSandbox", req, &sandboxapi.UpdateSandboxResponse{})
}

// taskAny is an Any of the API's as one of the vocabulary's.
func taskAny(a typeurl.Any) task.Any {
	if a == nil {
		return task.Any{}
	}
	return task.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
}
