package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"
)

func (a *App) imagesCommand() *cli.Command {
	return &cli.Command{
		Name:     "images",
		Usage:    "list images",
		Category: "Images",
		Description: `Examples:
  berth images
  berth images --json
  berth images --format 'table {{.name}}\t{{.size}}'
  berth images -q --filter 'name~=alpine'`,
		Flags:                  listFlags(list("filter", "a containerd `FILTER`, e.g. name~=alpine; several mean any of them", "f")),
		UseShortOptionHandling: true,
		Action:                 a.listImages,
	}
}

// imageCommand gathers the verbs for images under `berth image`, for hands
// that are used to that.
func (a *App) imageCommand() *cli.Command {
	ls := a.imagesCommand()
	ls.Name, ls.Aliases = "ls", []string{"list"}
	rm := a.rmiCommand()
	rm.Name, rm.Aliases = "rm", []string{"remove"}
	list := []*cli.Command{ls, rm, a.pullCommand(), a.pushCommand(), a.importCommand(), a.exportCommand(), a.tagCommand(), a.imagePruneCommand()}
	for _, c := range list {
		c.Category = ""
	}
	return &cli.Command{
		Name: "image", Usage: "manage images (ls, rm, pull, push, import, export, tag, prune)", Category: "Images", Commands: list,
	}
}

// imageRow is one image of `berth images --json`. The names of the fields stay
// as they are.
type imageRow struct {
	Name      string            `json:"name"`
	Digest    digest.Digest     `json:"digest"`
	MediaType string            `json:"mediaType"`
	Created   time.Time         `json:"created"`
	Size      int64             `json:"size"` // bytes of the content that is here
	Platforms []string          `json:"platforms"`
	Labels    map[string]string `json:"labels"`
}

func (a *App) listImages(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Present() {
		return usageError("images takes no arguments (see --filter, and berth inspect)")
	}
	out, err := newListing(cmd, imageColumns(time.Now()))
	if err != nil {
		return err
	}
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		list, err := s.client.ImageService().List(ctx, cmd.StringSlice("filter")...)
		if err != nil {
			return fmt.Errorf("list images: %w", err)
		}
		slices.SortFunc(list, func(a, b images.Image) int { return strings.Compare(a.Name, b.Name) })
		var rows []imageRow
		for _, img := range list {
			row := imageRow{Name: img.Name}
			if !out.quiet {
				if row, err = s.summarize(ctx, img); err != nil {
					return err
				}
			}
			rows = append(rows, row)
		}
		return out.show(a, rows)
	})
}

func imageColumns(now time.Time) columns[imageRow] {
	return columns[imageRow]{
		head: []string{"IMAGE", "DIGEST", "PLATFORMS", "SIZE", "CREATED"},
		cells: func(r *imageRow, full bool) []string {
			hash := r.Digest.String()
			if !full {
				hash = cut12(r.Digest)
			}
			return []string{r.Name, hash, strings.Join(r.Platforms, ","), size(r.Size), ago(r.Created, now)}
		},
	}
}

// summarize finds the platforms of an image whose content is here, and its size.
func (s *session) summarize(ctx context.Context, img images.Image) (imageRow, error) {
	row := imageRow{
		Name: img.Name, Digest: img.Target.Digest, MediaType: img.Target.MediaType,
		Created: img.CreatedAt, Platforms: []string{}, Labels: img.Labels,
	}
	if row.Labels == nil {
		row.Labels = map[string]string{}
	}
	docs, err := s.documents()
	if err != nil {
		return row, err
	}
	w := &walk{docs: docs, row: &row, seen: make(map[digest.Digest]bool)}
	if err := w.visit(ctx, img.Target, 0); err != nil {
		return row, fmt.Errorf("image %q: %w", img.Name, err)
	}
	slices.Sort(row.Platforms)
	row.Platforms = slices.Compact(row.Platforms)
	return row, nil
}

// walk goes through an image's documents.
type walk struct {
	docs *documents
	row  *imageRow
	seen map[digest.Digest]bool
}

// maxDepth bounds indexes within indexes, which hostile images might have.
const maxDepth = 8

func (w *walk) visit(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if w.seen[desc.Digest] || depth > maxDepth {
		return nil
	}
	w.seen[desc.Digest] = true
	index, manifest := images.IsIndexType(desc.MediaType), images.IsManifestType(desc.MediaType)
	if !index && !manifest {
		w.row.Size += desc.Size // a part of a checkpoint
		return nil
	}
	raw, err := w.docs.read(ctx, desc)
	if errdefs.IsNotFound(err) {
		return nil // another platform's, not fetched
	}
	if err != nil {
		return err
	}
	w.row.Size += desc.Size
	if index {
		var doc ocispec.Index
		if err := json.Unmarshal(raw, &doc); err != nil {
			return fmt.Errorf("index %s: %w", desc.Digest, err)
		}
		for _, m := range doc.Manifests {
			if err := w.visit(ctx, m, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return w.manifest(ctx, desc, raw)
}

func (w *walk) manifest(ctx context.Context, desc ocispec.Descriptor, raw []byte) error {
	var doc ocispec.Manifest
	if err := json.Unmarshal(raw, &doc); err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	config, err := w.docs.read(ctx, doc.Config)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range append([]ocispec.Descriptor{doc.Config}, doc.Layers...) {
		if !w.seen[d.Digest] {
			w.seen[d.Digest] = true
			w.row.Size += d.Size
		}
	}
	var p ocispec.Platform
	if desc.Platform != nil {
		p = *desc.Platform
	} else if err := json.Unmarshal(config, &p); err != nil {
		return fmt.Errorf("configuration %s: %w", doc.Config.Digest, err)
	}
	if p.OS != "" && p.OS != "unknown" {
		w.row.Platforms = append(w.row.Platforms, platforms.Format(platforms.Normalize(p)))
	}
	return nil
}
