package storage

import (
	"context"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	bolt "go.etcd.io/bbolt"
)

// Namespaces is the store of namespaces and their labels. Each method is a
// transaction of its own; View and Update make one of several calls.
type Namespaces struct {
	db *metadata.DB
}

var _ namespaces.Store = (*Namespaces)(nil)

// View calls fn with a store that shows one state of the database and refuses
// changes. The store is valid until fn returns.
func (n *Namespaces) View(fn func(namespaces.Store) error) error {
	return n.db.View(func(tx *bolt.Tx) error { return fn(metadata.NewNamespaceStore(tx)) })
}

// Update calls fn with a store whose changes are kept together if fn returns
// nil, and not at all otherwise. The store is valid until fn returns.
func (n *Namespaces) Update(fn func(namespaces.Store) error) error {
	return n.db.Update(func(tx *bolt.Tx) error { return fn(metadata.NewNamespaceStore(tx)) })
}

// Create makes a namespace; errdefs.ErrAlreadyExists if there is one.
func (n *Namespaces) Create(ctx context.Context, name string, labels map[string]string) error {
	return n.Update(func(s namespaces.Store) error { return s.Create(ctx, name, labels) })
}

// Labels gives the labels of a namespace. An unknown one has none.
func (n *Namespaces) Labels(ctx context.Context, name string) (labels map[string]string, err error) {
	err = n.View(func(s namespaces.Store) error {
		labels, err = s.Labels(ctx, name)
		return err
	})
	return labels, err
}

// SetLabel sets a label, and removes it where value is empty.
func (n *Namespaces) SetLabel(ctx context.Context, name, key, value string) error {
	return n.Update(func(s namespaces.Store) error { return s.SetLabel(ctx, name, key, value) })
}

// List names all namespaces.
func (n *Namespaces) List(ctx context.Context) (names []string, err error) {
	err = n.View(func(s namespaces.Store) error {
		names, err = s.List(ctx)
		return err
	})
	return names, err
}

// Delete removes an empty namespace; errdefs.ErrFailedPrecondition while it
// holds images, blobs, containers or snapshots.
func (n *Namespaces) Delete(ctx context.Context, name string, opts ...namespaces.DeleteOpts) error {
	return n.Update(func(s namespaces.Store) error { return s.Delete(ctx, name, opts...) })
}
