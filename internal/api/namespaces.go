package api

import (
	"context"
	"fmt"
	"strings"

	eventstypes "github.com/containerd/containerd/api/events"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

// NamespaceStore gives transactions on the namespaces; the store it passes is
// valid within fn only.
type NamespaceStore interface {
	View(fn func(namespaces.Store) error) error
	Update(fn func(namespaces.Store) error) error
}

// Namespaces is containerd.services.namespaces.v1. Its events carry the
// namespace that they are about.
type Namespaces struct {
	namespacesapi.UnimplementedNamespacesServer
	store     NamespaceStore
	publisher events.Publisher
}

var _ namespacesapi.NamespacesServer = (*Namespaces)(nil)

// NewNamespaces makes the service.
func NewNamespaces(store NamespaceStore, publisher events.Publisher) *Namespaces {
	return &Namespaces{store: store, publisher: publisher}
}

// Get gives a namespace with its labels. One that does not exist has none: a
// client asks before it creates anything.
func (s *Namespaces) Get(ctx context.Context, r *namespacesapi.GetNamespaceRequest) (*namespacesapi.GetNamespaceResponse, error) {
	var labels map[string]string
	err := s.store.View(func(store namespaces.Store) (err error) {
		labels, err = store.Labels(ctx, r.Name)
		return err
	})
	if err != nil {
		return nil, storeError(err)
	}
	return &namespacesapi.GetNamespaceResponse{Namespace: &namespacesapi.Namespace{Name: r.Name, Labels: labels}}, nil
}

// List gives all namespaces. The request's filter has no effect, as in
// containerd.
func (s *Namespaces) List(ctx context.Context, _ *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	resp := &namespacesapi.ListNamespacesResponse{}
	err := s.store.View(func(store namespaces.Store) error {
		names, err := store.List(ctx)
		if err != nil {
			return err
		}
		for _, name := range names {
			labels, err := store.Labels(ctx, name)
			if err != nil {
				return err
			}
			resp.Namespaces = append(resp.Namespaces, &namespacesapi.Namespace{Name: name, Labels: labels})
		}
		return nil
	})
	if err != nil {
		return nil, storeError(err)
	}
	return resp, nil
}

// Create makes a namespace.
func (s *Namespaces) Create(ctx context.Context, r *namespacesapi.CreateNamespaceRequest) (*namespacesapi.CreateNamespaceResponse, error) {
	if r.Namespace == nil {
		return nil, required("Namespace")
	}
	name, labels := r.Namespace.Name, r.Namespace.Labels
	err := s.store.Update(func(store namespaces.Store) error { return store.Create(ctx, name, labels) })
	if err != nil {
		return nil, storeError(err)
	}
	if err := s.publish(ctx, name, "/namespaces/create", &eventstypes.NamespaceCreate{Name: name, Labels: labels}); err != nil {
		return nil, err
	}
	return &namespacesapi.CreateNamespaceResponse{Namespace: r.Namespace}, nil
}

// Update sets the labels that the mask names, or replaces all labels.
func (s *Namespaces) Update(ctx context.Context, r *namespacesapi.UpdateNamespaceRequest) (*namespacesapi.UpdateNamespaceResponse, error) {
	if r.Namespace.GetName() == "" {
		return nil, required("Namespace.Name")
	}
	name, labels := r.Namespace.Name, r.Namespace.Labels
	err := s.store.Update(func(store namespaces.Store) error {
		if mask := r.UpdateMask.GetPaths(); len(mask) > 0 {
			return setLabels(ctx, store, r.Namespace, mask)
		}
		return replaceLabels(ctx, store, r.Namespace)
	})
	if err != nil {
		return nil, storeError(err)
	}
	if err := s.publish(ctx, name, "/namespaces/update", &eventstypes.NamespaceUpdate{Name: name, Labels: labels}); err != nil {
		return nil, err
	}
	return &namespacesapi.UpdateNamespaceResponse{Namespace: r.Namespace}, nil
}

func setLabels(ctx context.Context, store namespaces.Store, ns *namespacesapi.Namespace, mask []string) error {
	for _, path := range mask {
		key, ok := strings.CutPrefix(path, "labels.")
		if !ok {
			return fmt.Errorf("cannot update %q field: %w", path, errdefs.ErrInvalidArgument)
		}
		if err := store.SetLabel(ctx, ns.Name, key, ns.Labels[key]); err != nil {
			return err
		}
	}
	return nil
}

func replaceLabels(ctx context.Context, store namespaces.Store, ns *namespacesapi.Namespace) error {
	old, err := store.Labels(ctx, ns.Name)
	if err != nil {
		return err
	}
	for k := range old {
		if err := store.SetLabel(ctx, ns.Name, k, ""); err != nil {
			return err
		}
	}
	for k, v := range ns.Labels {
		if err := store.SetLabel(ctx, ns.Name, k, v); err != nil {
			return err
		}
	}
	return nil
}

// Delete removes an empty namespace.
func (s *Namespaces) Delete(ctx context.Context, r *namespacesapi.DeleteNamespaceRequest) (*emptypb.Empty, error) {
	err := s.store.Update(func(store namespaces.Store) error { return store.Delete(ctx, r.Name) })
	if err != nil {
		return nil, storeError(err)
	}
	if err := s.publish(ctx, r.Name, "/namespaces/delete", &eventstypes.NamespaceDelete{Name: r.Name}); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *Namespaces) publish(ctx context.Context, name, topic string, event events.Event) error {
	return storeError(s.publisher.Publish(namespaces.WithNamespace(ctx, name), topic, event))
}
