package storage

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
)

// transferError names what was transferred and puts into one line what several
// layers, fetched at once, had to say. It is of the class of its cause.
func transferError(src, dst any, err error) error {
	if err == nil {
		return nil
	}
	var parts []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		// Layers that were given up because another one failed say just that.
		said := slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(p, line) })
		if line != "" && line != errdefs.ErrAborted.Error() && !said {
			parts = append(parts, line)
		}
	}
	if len(parts) == 0 {
		parts = []string{err.Error()}
	}
	return &classedError{text: describeTransfer(src, dst) + ": " + strings.Join(parts, "; "), cause: err}
}

func describeTransfer(src, dst any) string {
	switch s := src.(type) {
	case *registry.OCIRegistry:
		return "pull " + s.Image()
	case transfer.ImageImporter:
		return "import image archive"
	case *image.Store:
		switch d := dst.(type) {
		case *registry.OCIRegistry:
			return "push " + d.Image()
		case transfer.ImageExporter:
			return "export image"
		case *image.Store:
			return "tag image"
		}
	}
	return fmt.Sprintf("transfer from %T to %T", src, dst)
}

// classedError is a cause with another text. A transport sees its class only:
// it would print the parts of a joined cause once more, a line each.
type classedError struct {
	text  string
	cause error
}

func (e *classedError) Error() string { return e.text }

func (e *classedError) Unwrap() error { return errdefs.Resolve(e.cause) }

// Is finds what the cause is made of, such as unix.ENOSPC.
func (e *classedError) Is(target error) bool { return errors.Is(e.cause, target) }
