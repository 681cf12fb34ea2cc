package engine

import (
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/sandbox"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/version"
)

const (
	// typeIntrospection names the directory of the root's uuid, as in containerd.
	typeIntrospection = "io.containerd.grpc.v1.introspection"
	typeSnapshotter   = "io.containerd.snapshotter.v1"
)

// makeServices wires the API's services over the parts.
func (e *Engine) makeServices() error {
	about, err := api.NewIntrospection(api.IntrospectionConfig{
		Dir:     filepath.Join(e.cfg.Root, typeIntrospection),
		Parts:   slices.Concat(e.store.Descriptors(), api.Parts(e.cfg.Root)),
		Runtime: e.runtime.PluginInfo,
	})
	if err != nil {
		return err
	}
	e.about = about
	e.tasks = api.NewTasks(api.TasksConfig{
		Runner:     e.runtime,
		Containers: e.store.Containers,
		Content:    e.store.Content,
		TempDir:    e.tempDir(),
		Log:        e.cfg.Log,
	})
	built := version.Get()
	e.services = api.Services{
		Containers:    api.NewContainers(e.store.Containers, e.exchange),
		Content:       api.NewContent(e.store.Content),
		Diff:          api.NewDiff(e.store.Diff),
		Events:        api.NewEvents(e.exchange),
		Images:        api.NewImages(e.store.Images, e.store.GC),
		Introspection: api.NewIntrospectionServer(about),
		Leases:        api.NewLeases(e.store.Leases),
		Mounts:        api.NewMounts(e.store.Mounts),
		Namespaces:    api.NewNamespaces(e.store.Namespaces, e.exchange),
		Sandboxes:     api.NewSandboxStore(e.store.Sandboxes),
		Sandboxers:    api.NewSandboxControllers(map[string]sandbox.Controller{api.SandboxerShim: e.runtime.Sandboxes()}, e.exchange),
		Snapshots:     api.NewSnapshots(e.store),
		Streaming:     api.NewStreaming(e.store.Streams),
		Tasks:         e.tasks,
		Transfer: api.NewTransfer(api.TransferConfig{
			Transferrer: e.store.Transfer, Streams: e.store.Streams, HostDir: e.store.HostDir,
		}),
		Version: api.NewVersion(built.Version, built.Revision),
	}
	e.server = api.NewServer(e.services, e.cfg.Log)
	e.direct = api.NewDirect(e.services, e.cfg.Log)
	return nil
}
