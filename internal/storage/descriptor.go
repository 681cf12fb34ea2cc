package storage

import (
	"slices"
	"strconv"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Types of the parts, as containerd names them: clients look for them in the
// introspection service, people in the directories below the root.
const (
	typeContent     = "io.containerd.content.v1"
	typeSnapshotter = "io.containerd.snapshotter.v1"
	typeMetadata    = "io.containerd.metadata.v1"
	typeDiffer      = "io.containerd.differ.v1"
	typeGC          = "io.containerd.gc.v1"
	typeLeases      = "io.containerd.lease.v1"
	typeMounts      = "io.containerd.mount-manager.v1"
	typeStreams     = "io.containerd.streaming.v1"
	typeTransfer    = "io.containerd.transfer.v1"
	typeSandboxes   = "io.containerd.sandbox.store.v1"
)

// Descriptor tells clients of a part of the store what they know as a plugin.
type Descriptor struct {
	Type, ID string
	// Requires names the types of the parts that this one is built on.
	Requires     []string
	Platforms    []ocispec.Platform
	Capabilities []string
	// Exports are values for clients, such as "root", the part's directory.
	Exports map[string]string
	// InitErr says why the part does not work; nil if it does.
	InitErr error
}

// Descriptors lists the parts of the store, those that do not work included.
func (s *Store) Descriptors() []Descriptor { return slices.Clone(s.descriptors) }

func (s *Store) describe(cfg Config, metaPath string) {
	here := []ocispec.Platform{platforms.DefaultSpec()}
	s.descriptors = append(s.descriptors,
		Descriptor{Type: typeContent, ID: "content", Exports: map[string]string{"root": s.path(cfg.Root, typeContent, "content")}},
		Descriptor{
			Type: typeMetadata, ID: "bolt", Requires: []string{typeContent, typeSnapshotter},
			Exports: map[string]string{"path": metaPath, "policy": "shared"},
		},
		Descriptor{Type: typeMounts, ID: "bolt", Requires: []string{typeMetadata}},
		Descriptor{Type: typeDiffer, ID: "walking", Requires: []string{typeMetadata, typeMounts}, Platforms: here},
		Descriptor{Type: typeGC, ID: "scheduler", Requires: []string{typeMetadata}, Exports: s.GC.cfg.exports()},
		Descriptor{Type: typeLeases, ID: "manager", Requires: []string{typeMetadata, typeGC}},
		Descriptor{Type: typeSandboxes, ID: "local", Requires: []string{typeMetadata}},
		Descriptor{Type: typeStreams, ID: "manager", Requires: []string{typeMetadata}},
		Descriptor{
			Type: typeTransfer, ID: "local", Requires: []string{typeLeases, typeMetadata, typeDiffer, typeSnapshotter},
			Exports: map[string]string{
				"MaxConcurrentDownloads": strconv.Itoa(cfg.MaxConcurrentDownloads),
				"MaxConcurrentUploads":   strconv.Itoa(cfg.MaxConcurrentUploads),
				"MaxConcurrentUnpacks":   strconv.Itoa(cfg.MaxConcurrentUnpacks),
			},
		},
	)
}
