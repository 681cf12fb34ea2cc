package engine

import (
	"fmt"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Client returns containerd's Go client on this engine. Its calls run in the
// caller's goroutine: no socket, no transport; data is not copied through
// streams. Only what the client can do in no other way (Version, IsServing)
// goes through a connection within the process, made when it is first needed.
//
// Contexts must name a namespace (namespaces.WithNamespace): a default
// namespace among the options cannot reach direct calls. The caller closes the
// client; it ends with the engine at the latest.
func (e *Engine) Client(opts ...client.Opt) (*client.Client, error) {
	sns := make(map[string]snapshots.Snapshotter)
	for _, d := range e.store.Descriptors() {
		if d.Type != typeSnapshotter || d.InitErr != nil {
			continue
		}
		sn, err := e.store.Snapshotter(d.ID)
		if err != nil {
			return nil, fmt.Errorf("make client: %w", err)
		}
		sns[d.ID] = sn
	}
	conn, err := grpc.NewClient("passthrough:///engine",
		grpc.WithContextDialer(e.pipe.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	services := client.WithServices(
		// These do more than their store: events, garbage collection.
		client.WithContainerClient(containersapi.NewContainersClient(e.direct)),
		client.WithImageClient(imagesapi.NewImagesClient(e.direct)),
		client.WithNamespaceClient(namespacesapi.NewNamespacesClient(e.direct)),
		client.WithDiffClient(diffapi.NewDiffClient(e.direct)),
		client.WithTaskClient(tasksapi.NewTasksClient(e.direct)),
		client.WithContentStore(e.store.Content),
		client.WithSnapshotters(sns),
		client.WithLeasesService(e.store.Leases),
		client.WithEventService(e.exchange),
		client.WithIntrospectionService(e.about),
		client.WithSandboxStore(e.store.Sandboxes),
		client.WithTransferService(e.store.Transfer),
		client.WithMountManager(e.store.Mounts),
	)
	c, err := client.NewWithConn(conn, append([]client.Opt{services}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	return c, nil
}
