package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/google/uuid"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/storage"
)

// RuntimeInfo asks a runtime about itself.
type RuntimeInfo func(context.Context, *types.RuntimeRequest) (*types.RuntimeInfo, error)

// IntrospectionConfig says what the service tells.
type IntrospectionConfig struct {
	// Dir holds the file "uuid", by which clients know this root again. It is
	// made when the file is needed first.
	Dir string
	// Parts are what clients know as plugins.
	Parts []storage.Descriptor
	// Runtime is asked by PluginInfo of io.containerd.runtime.v2.task.
	Runtime RuntimeInfo
}

// Introspection tells clients which daemon they talk to and what it can do. Its
// methods give errdefs errors; [Introspection.Server] and the gRPC service of
// [NewIntrospectionServer] share them.
type Introspection struct {
	uuid    string
	pidns   uint64
	plugins []*introspectionapi.Plugin
	runtime RuntimeInfo
}

var _ introspection.Service = (*Introspection)(nil)

// NewIntrospection reads the root's uuid, or makes one.
func NewIntrospection(cfg IntrospectionConfig) (*Introspection, error) {
	id, err := rootUUID(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("uuid of the root: %w", err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &st); err != nil {
		return nil, fmt.Errorf("pid namespace of the daemon: %w", err)
	}
	s := &Introspection{uuid: id, pidns: st.Ino, runtime: cfg.Runtime}
	for _, p := range cfg.Parts {
		s.plugins = append(s.plugins, pluginProto(p))
	}
	return s, nil
}

// rootUUID returns what the file "uuid" says. A file without a uuid, which a
// crash at its first writing leaves, is written anew.
func rootUUID(dir string) (string, error) {
	path := filepath.Join(dir, "uuid")
	data, err := os.ReadFile(path)
	if err == nil {
		if id, err := uuid.ParseBytes(data); err == nil {
			return id.String(), nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := uuid.NewString()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(path+".new", []byte(id), 0o600); err != nil {
		return "", err
	}
	return id, os.Rename(path+".new", path)
}

// Server says which daemon this is.
func (s *Introspection) Server(context.Context) (*introspectionapi.ServerResponse, error) {
	return &introspectionapi.ServerResponse{UUID: s.uuid, Pid: uint64(os.Getpid()), Pidns: s.pidns}, nil
}

// Plugins returns the parts that match any of the filters, which know type and
// id.
func (s *Introspection) Plugins(_ context.Context, fs ...string) (*introspectionapi.PluginsResponse, error) {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return nil, fmt.Errorf("plugin filter: %w", err)
	}
	resp := &introspectionapi.PluginsResponse{}
	for _, p := range s.plugins {
		if filter.Match(pluginFields(p)) {
			resp.Plugins = append(resp.Plugins, p)
		}
	}
	return resp, nil
}

func pluginFields(p *introspectionapi.Plugin) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		switch path[0] {
		case "type":
			return p.Type, true
		case "id":
			return p.ID, true
		}
		return "", false
	})
}

// PluginInfo returns one part. With options, which only the runtime takes, it
// also asks the part about itself.
func (s *Introspection) PluginInfo(ctx context.Context, typ, id string, options any) (*introspectionapi.PluginInfoResponse, error) {
	var plugin *introspectionapi.Plugin
	for _, p := range s.plugins {
		if p.Type == typ && p.ID == id {
			plugin = p
		}
	}
	if plugin == nil {
		return nil, fmt.Errorf("plugin %s.%s not found: %w", typ, id, errdefs.ErrNotFound)
	}
	resp := &introspectionapi.PluginInfoResponse{Plugin: plugin}
	if options == nil {
		return resp, nil
	}
	if typ != TypeRuntime || id != RuntimeID || s.runtime == nil {
		return nil, fmt.Errorf("plugin %s.%s does not provide extra information: %w", typ, id, errdefs.ErrNotImplemented)
	}
	request, ok := options.(*types.RuntimeRequest)
	if !ok {
		return nil, fmt.Errorf("plugin %s.%s: options of type %T, want RuntimeRequest: %w", typ, id, options, errdefs.ErrInvalidArgument)
	}
	info, err := s.runtime(ctx, request)
	if err != nil {
		return nil, err
	}
	if resp.Extra, err = typeurl.MarshalAnyToProto(info); err != nil {
		return nil, fmt.Errorf("encode runtime info: %w", err)
	}
	return resp, nil
}

func pluginProto(d storage.Descriptor) *introspectionapi.Plugin {
	p := &introspectionapi.Plugin{
		Type:         d.Type,
		ID:           d.ID,
		Requires:     d.Requires,
		Platforms:    types.OCIPlatformToProto(d.Platforms),
		Capabilities: d.Capabilities,
		Exports:      d.Exports,
	}
	if d.InitErr != nil {
		st := status.Convert(errgrpc.ToGRPC(d.InitErr))
		p.InitErr = &rpcstatus.Status{Code: int32(st.Code()), Message: st.Message()}
	}
	return p
}

// introspectionServer is containerd.services.introspection.v1.
type introspectionServer struct {
	introspectionapi.UnimplementedIntrospectionServer
	svc introspection.Service
}

// NewIntrospectionServer offers the service to clients.
func NewIntrospectionServer(svc introspection.Service) introspectionapi.IntrospectionServer {
	return &introspectionServer{svc: svc}
}

func (s *introspectionServer) Server(ctx context.Context, _ *emptypb.Empty) (*introspectionapi.ServerResponse, error) {
	resp, err := s.svc.Server(ctx)
	return resp, errgrpc.ToGRPC(err)
}

func (s *introspectionServer) Plugins(ctx context.Context, r *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	resp, err := s.svc.Plugins(ctx, r.Filters...)
	return resp, errgrpc.ToGRPC(err)
}

func (s *introspectionServer) PluginInfo(ctx context.Context, r *introspectionapi.PluginInfoRequest) (*introspectionapi.PluginInfoResponse, error) {
	options, err := decodeOptions(r.Options)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp, err := s.svc.PluginInfo(ctx, r.Type, r.ID, options)
	return resp, errgrpc.ToGRPC(err)
}

func decodeOptions(options *anypb.Any) (any, error) {
	if options == nil {
		return nil, nil
	}
	v, err := typeurl.UnmarshalAny(options)
	if err != nil {
		return nil, fmt.Errorf("plugin info options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return v, nil
}
