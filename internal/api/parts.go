package api

import (
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/storage"
)

// Names under which clients look for the runtime.
const (
	TypeRuntime = "io.containerd.runtime.v2"
	RuntimeID   = "task"

	typeEvents  = "io.containerd.event.v1"
	typeService = "io.containerd.grpc.v1"
	typeSandbox = "io.containerd.sandbox.controller.v1"
	typeMonitor = "io.containerd.monitor.container.v1"
)

// logSchemes are the schemes of URIs that the standard output and error of a
// container may be.
const logSchemes = "fifo,binary,binary-v2,file,json-file"

// Parts describes to clients what is not storage: the runtime, the events and
// every service that NewGRPCServer registers. Root is the root directory of
// the daemon, exported by the runtime for those who keep files beside it.
func Parts(root string) []storage.Descriptor {
	parts := []storage.Descriptor{
		{
			Type: TypeRuntime, ID: RuntimeID,
			Requires:  []string{typeEvents, "io.containerd.metadata.v1"},
			Platforms: []ocispec.Platform{platforms.DefaultSpec()},
			Exports:   map[string]string{"root": root, "log-uri-schemes": logSchemes},
		},
		{Type: typeEvents, ID: "exchange"},
		{Type: typeSandbox, ID: SandboxerShim, Requires: []string{TypeRuntime, typeEvents}},
		{
			// nerdctl looks here for the policies of its --restart.
			Type: typeMonitor, ID: "restart", Requires: []string{typeEvents, typeService},
			Capabilities: []string{"no", "always", "on-failure", "unless-stopped"},
		},
	}
	for _, id := range serviceIDs {
		parts = append(parts, storage.Descriptor{Type: typeService, ID: id})
	}
	return parts
}

// serviceIDs are containerd's names of the services.
var serviceIDs = []string{
	"containers", "content", "diff", "events", "healthcheck", "images", "introspection", "leases", "mounts",
	"namespaces", "sandbox-controllers", "sandboxes", "snapshots", "streaming", "tasks", "transfer", "version",
}
