package bundle

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
)

// MaxSpec is the largest OCI spec that is taken, in bytes.
const MaxSpec = 8 << 20

// Spec is the part of an OCI spec that decides where and for whom a bundle is
// made.
type Spec struct {
	Annotations map[string]string
	// RootGID is the group outside the container that its gid 0 is mapped to;
	// 0 without a user namespace.
	RootGID uint32
}

// ParseSpec reads the spec's JSON. An empty spec gives an empty result.
func ParseSpec(data []byte) (Spec, error) {
	if len(data) == 0 {
		return Spec{}, nil
	}
	if len(data) > MaxSpec {
		return Spec{}, fmt.Errorf("spec has %d bytes, more than the %d that are taken: %w", len(data), MaxSpec, errdefs.ErrInvalidArgument)
	}
	var raw struct {
		Annotations map[string]string `json:"annotations"`
		Linux       struct {
			GIDMappings []struct {
				ContainerID uint32 `json:"containerID"`
				HostID      uint32 `json:"hostID"`
			} `json:"gidMappings"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return Spec{}, fmt.Errorf("spec is not an OCI spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	spec := Spec{Annotations: raw.Annotations}
	for _, m := range raw.Linux.GIDMappings {
		if m.ContainerID == 0 {
			spec.RootGID = m.HostID
			break
		}
	}
	return spec, nil
}
