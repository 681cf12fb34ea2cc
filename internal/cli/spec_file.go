package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/internal/cli/runspec"
)

func (s *session) specFor(ctx context.Context, p *plan, image *imageInfo, rootfs []mount.Mount) (*specs.Spec, error) {
	if p.specFile != "" {
		return readSpec(p.specFile)
	}
	var config *ocispec.ImageConfig
	if image != nil {
		config = &image.config.Config
	} else if st, err := os.Stat(p.spec.Rootfs); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("rootfs %q: not a directory (leave out --rootfs to run an image)", p.spec.Rootfs)
	}
	return runspec.Build(ctx, &p.spec, config, rootfs)
}

// specType is the type URL that containerd's clients give a specification.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// maxSpec bounds a specification's file.
const maxSpec = 16 << 20

func readSpec(name string) (*specs.Spec, error) {
	st, err := os.Stat(name)
	if err == nil && st.Size() > maxSpec {
		err = fmt.Errorf("larger than %d bytes", maxSpec)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("specification %q: %w", name, err)
	}
	if spec.Process == nil || spec.Root == nil {
		return nil, fmt.Errorf("specification %q: it has no process or no root", name)
	}
	// A path is relative to the bundle, which here is where the file lies.
	if !filepath.IsAbs(spec.Root.Path) {
		dir, err := filepath.Abs(filepath.Dir(name))
		if err != nil {
			return nil, fmt.Errorf("specification %q: %w", name, err)
		}
		spec.Root.Path = filepath.Join(dir, spec.Root.Path)
	}
	return &spec, nil
}

func dumpSpec(name string, spec *specs.Spec) error {
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(name, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("dump of the specification: %w", err)
	}
	return nil
}

// writeNew writes a file that must not be there yet, as docker does for
// --cidfile.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: the file is there already (remove it, or choose another)", name)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// storeSpec replaces the specification of a container that exists.
func (s *session) storeSpec(ctx context.Context, m *made, spec *specs.Spec) error {
	value, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("specification: %w", err)
	}
	m.Spec = &anypb.Any{TypeUrl: specType, Value: value}
	update := containers.Container{ID: m.ID, Spec: m.Spec}
	if _, err := s.client.ContainerService().Update(ctx, update, "spec"); err != nil {
		return fmt.Errorf("container %q: update: %w", m.ID, err)
	}
	return nil
}
