package api

import (
	"context"

	eventstypes "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Containers is containerd.services.containers.v1 over a store of container
// records. It publishes the events of containers, which the store does not.
type Containers struct {
	containersapi.UnimplementedContainersServer
	store     containers.Store
	publisher events.Publisher
}

var _ containersapi.ContainersServer = (*Containers)(nil)

// NewContainers makes the service.
func NewContainers(store containers.Store, publisher events.Publisher) *Containers {
	return &Containers{store: store, publisher: publisher}
}

// Get gives one record.
func (s *Containers) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	c, err := s.store.Get(ctx, r.ID)
	if err != nil {
		return nil, storeError(err)
	}
	return &containersapi.GetContainerResponse{Container: containerToProto(&c)}, nil
}

// List gives the records that match any of the filters, in one message.
func (s *Containers) List(ctx context.Context, r *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	cs, err := s.store.List(ctx, r.Filters...)
	if err != nil {
		return nil, storeError(err)
	}
	resp := &containersapi.ListContainersResponse{}
	for i := range cs {
		resp.Containers = append(resp.Containers, containerToProto(&cs[i]))
	}
	return resp, nil
}

// ListStream is List with a message for each record.
func (s *Containers) ListStream(r *containersapi.ListContainersRequest, stream containersapi.Containers_ListStreamServer) error {
	cs, err := s.store.List(stream.Context(), r.Filters...)
	if err != nil {
		return storeError(err)
	}
	for i := range cs {
		if err := stream.Send(&containersapi.ListContainerMessage{Container: containerToProto(&cs[i])}); err != nil {
			return err
		}
	}
	return nil
}

// Create stores a new record.
func (s *Containers) Create(ctx context.Context, r *containersapi.CreateContainerRequest) (*containersapi.CreateContainerResponse, error) {
	if r.Container == nil {
		return nil, required("Container")
	}
	created, err := s.store.Create(ctx, containerFromProto(r.Container))
	if err != nil {
		return nil, storeError(err)
	}
	c := containerToProto(&created)
	err = s.publisher.Publish(ctx, "/containers/create", &eventstypes.ContainerCreate{
		ID:      c.ID,
		Image:   c.Image,
		Runtime: &eventstypes.ContainerCreate_Runtime{Name: c.Runtime.Name, Options: c.Runtime.Options},
	})
	if err != nil {
		return nil, storeError(err)
	}
	return &containersapi.CreateContainerResponse{Container: c}, nil
}

// Update changes the fields that the mask names, or all that can be changed.
func (s *Containers) Update(ctx context.Context, r *containersapi.UpdateContainerRequest) (*containersapi.UpdateContainerResponse, error) {
	if r.Container.GetID() == "" {
		return nil, required("Container.ID")
	}
	updated, err := s.store.Update(ctx, containerFromProto(r.Container), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, storeError(err)
	}
	c := containerToProto(&updated)
	err = s.publisher.Publish(ctx, "/containers/update", &eventstypes.ContainerUpdate{
		ID: c.ID, Image: c.Image, Labels: c.Labels, SnapshotKey: c.SnapshotKey,
	})
	if err != nil {
		return nil, storeError(err)
	}
	return &containersapi.UpdateContainerResponse{Container: c}, nil
}

// Delete removes a record. Whether a task still runs is the caller's concern.
func (s *Containers) Delete(ctx context.Context, r *containersapi.DeleteContainerRequest) (*emptypb.Empty, error) {
	if err := s.store.Delete(ctx, r.ID); err != nil {
		return nil, storeError(err)
	}
	if err := s.publisher.Publish(ctx, "/containers/delete", &eventstypes.ContainerDelete{ID: r.ID}); err != nil {
		return nil, storeError(err)
	}
	return &emptypb.Empty{}, nil
}

func containerToProto(c *containers.Container) *containersapi.Container {
	extensions := make(map[string]*anypb.Any, len(c.Extensions))
	for k, v := range c.Extensions {
		extensions[k] = typeurl.MarshalProto(v)
	}
	return &containersapi.Container{
		ID:     c.ID,
		Labels: c.Labels,
		Image:  c.Image,
		Runtime: &containersapi.Container_Runtime{
			Name:    c.Runtime.Name,
			Options: typeurl.MarshalProto(c.Runtime.Options),
		},
		Spec:        typeurl.MarshalProto(c.Spec),
		Snapshotter: c.Snapshotter,
		SnapshotKey: c.SnapshotKey,
		CreatedAt:   timestamppb.New(c.CreatedAt),
		UpdatedAt:   timestamppb.New(c.UpdatedAt),
		Extensions:  extensions,
		Sandbox:     c.SandboxID,
	}
}

func containerFromProto(c *containersapi.Container) containers.Container {
	extensions := make(map[string]typeurl.Any, len(c.Extensions))
	for k, v := range c.Extensions {
		extensions[k] = anyFromProto(v)
	}
	return containers.Container{
		ID:     c.ID,
		Labels: c.Labels,
		Image:  c.Image,
		Runtime: containers.RuntimeInfo{
			Name:    c.Runtime.GetName(),
			Options: anyFromProto(c.Runtime.GetOptions()),
		},
		Spec:        anyFromProto(c.Spec),
		Snapshotter: c.Snapshotter,
		SnapshotKey: c.SnapshotKey,
		Extensions:  extensions,
		SandboxID:   c.Sandbox,
	}
}

// anyFromProto keeps a missing value nil: a nil *anypb.Any in the interface
// would pass for a value.
func anyFromProto(a *anypb.Any) typeurl.Any {
	if a == nil {
		return nil
	}
	return a
}
