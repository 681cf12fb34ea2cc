package api

import (
	"context"
	"fmt"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// SandboxerShim is the name of the controller that starts shims which serve
// sandboxes; clients choose it unless the namespace's labels say otherwise.
const SandboxerShim = "shim"

// SandboxControllers is containerd.services.sandbox.v1.Controller over
// controllers by name. It publishes the events of sandboxes.
type SandboxControllers struct {
	sandboxapi.UnimplementedControllerServer
	controllers map[string]sandbox.Controller
	publisher   events.Publisher
}

var _ sandboxapi.ControllerServer = (*SandboxControllers)(nil)

// NewSandboxControllers makes the service; a nil controller is none.
func NewSandboxControllers(controllers map[string]sandbox.Controller, publisher events.Publisher) *SandboxControllers {
	return &SandboxControllers{controllers: controllers, publisher: publisher}
}

func (s *SandboxControllers) find(name string) (sandbox.Controller, error) {
	if name == "" {
		return nil, required("Sandboxer")
	}
	if c := s.controllers[name]; c != nil {
		return c, nil
	}
	return nil, errgrpc.ToGRPC(fmt.Errorf("sandbox controller %q: %w", name, errdefs.ErrNotFound))
}

// Create prepares a sandbox.
func (s *SandboxControllers) Create(ctx context.Context, r *sandboxapi.ControllerCreateRequest) (*sandboxapi.ControllerCreateResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	info := sandbox.Sandbox{ID: r.SandboxID}
	if r.Sandbox != nil {
		info = sandboxFromProto(r.Sandbox)
	}
	opts := []sandbox.CreateOpt{
		sandbox.WithNetNSPath(r.NetnsPath), sandbox.WithRootFS(mount.FromProto(r.Rootfs)), sandbox.WithAnnotations(r.Annotations),
	}
	if r.Options != nil {
		opts = append(opts, sandbox.WithOptions(r.Options))
	}
	if err := c.Create(ctx, info, opts...); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if err := s.publisher.Publish(ctx, "/sandboxes/create", &eventstypes.SandboxCreate{SandboxID: info.ID}); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerCreateResponse{SandboxID: info.ID}, nil
}

// Start starts a created sandbox.
func (s *SandboxControllers) Start(ctx context.Context, r *sandboxapi.ControllerStartRequest) (*sandboxapi.ControllerStartResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	instance, err := c.Start(ctx, r.SandboxID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if err := s.publisher.Publish(ctx, "/sandboxes/start", &eventstypes.SandboxStart{SandboxID: r.SandboxID}); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerStartResponse{
		SandboxID: instance.SandboxID, Pid: instance.Pid, CreatedAt: timestamppb.New(instance.CreatedAt), Labels: instance.Labels,
		Address: instance.Address, Version: instance.Version, Spec: optionalAny(instance.Spec),
	}, nil
}

// Platform says for which platform the sandbox's containers are to be.
func (s *SandboxControllers) Platform(ctx context.Context, r *sandboxapi.ControllerPlatformRequest) (*sandboxapi.ControllerPlatformResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	p, err := c.Platform(ctx, r.SandboxID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerPlatformResponse{
		Platform: &types.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion},
	}, nil
}

// Stop stops a sandbox; one that is gone is stopped.
func (s *SandboxControllers) Stop(ctx context.Context, r *sandboxapi.ControllerStopRequest) (*sandboxapi.ControllerStopResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	if err := c.Stop(ctx, r.SandboxID, sandbox.WithTimeout(time.Duration(r.TimeoutSecs)*time.Second)); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerStopResponse{}, nil
}

// Wait returns when the sandbox has ended, and publishes that it has.
func (s *SandboxControllers) Wait(ctx context.Context, r *sandboxapi.ControllerWaitRequest) (*sandboxapi.ControllerWaitResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	exit, err := c.Wait(ctx, r.SandboxID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	at := timestamppb.New(exit.ExitedAt)
	err = s.publisher.Publish(ctx, "/sandboxes/exit", &eventstypes.SandboxExit{SandboxID: r.SandboxID, ExitStatus: exit.ExitStatus, ExitedAt: at})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerWaitResponse{ExitStatus: exit.ExitStatus, ExitedAt: at}, nil
}

// Status says how a sandbox is; one that is not there has ended.
func (s *SandboxControllers) Status(ctx context.Context, r *sandboxapi.ControllerStatusRequest) (*sandboxapi.ControllerStatusResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	status, err := c.Status(ctx, r.SandboxID, r.Verbose)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerStatusResponse{
		SandboxID: status.SandboxID, Pid: status.Pid, State: status.State, Info: status.Info,
		CreatedAt: timestamppb.New(status.CreatedAt), ExitedAt: timestamppb.New(status.ExitedAt), Extra: optionalAny(status.Extra),
		Address: status.Address, Version: status.Version,
	}, nil
}

// Shutdown removes a sandbox.
func (s *SandboxControllers) Shutdown(ctx context.Context, r *sandboxapi.ControllerShutdownRequest) (*sandboxapi.ControllerShutdownResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	if err := c.Shutdown(ctx, r.SandboxID); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerShutdownResponse{}, nil
}

// Metrics gives a sandbox's statistics.
func (s *SandboxControllers) Metrics(ctx context.Context, r *sandboxapi.ControllerMetricsRequest) (*sandboxapi.ControllerMetricsResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	m, err := c.Metrics(ctx, r.SandboxID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerMetricsResponse{Metrics: m}, nil
}

// Update tells the sandbox of a change of its record.
func (s *SandboxControllers) Update(ctx context.Context, r *sandboxapi.ControllerUpdateRequest) (*sandboxapi.ControllerUpdateResponse, error) {
	c, err := s.find(r.Sandboxer)
	if err != nil {
		return nil, err
	}
	if r.Sandbox == nil {
		return nil, required("Sandbox")
	}
	if err := c.Update(ctx, r.SandboxID, sandboxFromProto(r.Sandbox), r.Fields...); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &sandboxapi.ControllerUpdateResponse{}, nil
}

// optionalAny keeps what is missing missing.
func optionalAny(a typeurl.Any) *anypb.Any {
	if a == nil {
		return nil
	}
	return typeurl.MarshalProto(a)
}
