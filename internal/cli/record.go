package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// recordKey names the extension of a container that holds this command's own
// notes. They are no labels: an image may set labels, and what stands here
// names files of the host.
const (
	recordKey  = "berth.cli"
	recordType = "berth.cli/record.v1+json"
)

// record is what berth notes about a container that it made.
type record struct {
	// Log gets the output: see logURI. Empty for none.
	Log string `json:"log,omitempty"`
	// Detached says that the container was started in the background.
	Detached bool `json:"detached,omitempty"`
	// Remove says that the container goes with its end in the foreground.
	Remove bool `json:"remove,omitempty"`
	// Volatile says that the root file system was never written to the disk: the
	// kernel does not mount it a second time.
	Volatile bool `json:"volatile,omitempty"`
	// Terminal says that its process wants a terminal.
	Terminal bool `json:"terminal,omitempty"`
	// StopTimeout is in seconds, nil for the default.
	StopTimeout *int `json:"stopTimeout,omitempty"`
	// Network is the mode: none, host, cni or container.
	Network string `json:"network,omitempty"`
	// NetworkOf is the container that it shares the network with.
	NetworkOf string `json:"networkOf,omitempty"`
	// Files is the directory of the container's files, empty for none.
	Files string `json:"files,omitempty"`
	// Exit is how the last run in the foreground ended; nil before.
	Exit *exitRecord `json:"exit,omitempty"`
}

type exitRecord struct {
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

// readRecord returns berth's notes; a container of another client has none.
func readRecord(c *containers.Container) (record, error) {
	var r record
	ext, ok := c.Extensions[recordKey]
	if !ok || ext.GetTypeUrl() != recordType {
		return r, nil
	}
	if err := json.Unmarshal(ext.GetValue(), &r); err != nil {
		return r, fmt.Errorf("container %q: extension %s: %w", c.ID, recordKey, err)
	}
	return r, nil
}

// put writes the notes into a container, which the caller stores.
func (r record) put(c *containers.Container) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if c.Extensions == nil {
		c.Extensions = make(map[string]typeurl.Any)
	}
	c.Extensions[recordKey] = &anypb.Any{TypeUrl: recordType, Value: value}
	return nil
}
