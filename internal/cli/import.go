package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/attach"
	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Aliases:   []string{"load"},
		Usage:     "load images from a tar archive (OCI layout, docker save) and unpack them",
		ArgsUsage: "[FILE]",
		Category:  "Images",
		Description: `Without a file, or with "-", the archive comes from standard input. Examples:
  berth import alpine.tar
  berth import --tag demo:1 build/image.tar
  docker save alpine | berth import`,
		Flags: []cli.Flag{
			str("tag", "`NAME` for the image, for an archive with one", "t"),
			str("base-name", "`NAME` to which tags in the archive are added"),
			str("platform", "load for a `PLATFORM`, e.g. linux/arm64"),
			yes("all-platforms", "load for every platform, and unpack this one's"),
			yes("no-unpack", "leave the unpacking to the first run"),
			list("label", "`KEY=VALUE` on the images"),
			&cli.StringFlag{Name: "snapshotter", Usage: "`NAME` of the snapshotter", Sources: cli.EnvVars("CONTAINERD_SNAPSHOTTER")},
			yes("quiet", "print the names alone", "q"),
		},
		UseShortOptionHandling: true,
		Action:                 a.importImages,
	}
}

func (a *App) importImages(ctx context.Context, cmd *cli.Command) error {
	if cmd.NArg() > 1 {
		return usageError("name one archive (berth import FILE)")
	}
	in, name := a.Stdin, "standard input"
	if f := cmd.Args().First(); f != "" && f != "-" {
		file, err := os.Open(f)
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		defer file.Close()
		in, name = file, f
	} else if attach.IsTerminal(in) {
		return usageError("an archive is missing (berth import FILE, or pipe one in)")
	}
	opts, err := importOptions(cmd)
	if err != nil {
		return err
	}
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		before, err := s.imageTargets(ctx)
		if err != nil {
			return err
		}
		progress, done := s.progress(cmd.Bool("quiet"))
		watch := &savedImages{next: progress}
		body := &counted{r: in}
		err = s.client.Transfer(ctx, archive.NewImageImportStream(body, ""), image.NewStore("", opts...), transfer.WithProgress(watch.update))
		done()
		switch {
		case errors.Is(err, context.Canceled):
			return err
		case err != nil && body.n.Load() == 0:
			return fmt.Errorf("archive %s: it is empty (use an archive of docker save or an OCI layout)", name)
		case err != nil:
			return fmt.Errorf("archive %s: import: %w", name, err)
		}
		return s.finishImport(ctx, name, cmd.String("tag"), watch.list(), before)
	})
}

func importOptions(cmd *cli.Command) ([]image.StoreOpt, error) {
	var opts []image.StoreOpt
	p := platforms.DefaultSpec()
	if s := cmd.String("platform"); s != "" {
		var err error
		if p, err = platforms.Parse(s); err != nil {
			return nil, fmt.Errorf("platform %q: %w (use os/arch[/variant])", s, err)
		}
		if cmd.Bool("all-platforms") {
			return nil, usageError("--platform and --all-platforms exclude each other")
		}
	}
	if !cmd.Bool("all-platforms") {
		opts = append(opts, image.WithPlatforms(p))
	}
	if !cmd.Bool("no-unpack") {
		opts = append(opts, image.WithUnpack(p, cmd.String("snapshotter")))
	}
	labels, err := runspec.ParseLabels(cmd.StringSlice("label"), "")
	if err != nil {
		return nil, err
	}
	if len(labels) > 0 {
		opts = append(opts, image.WithImageLabels(labels))
	}
	base := cmd.String("base-name")
	if base == "" {
		// For images without a full name of their own, which keep theirs.
		return append(opts, image.WithDigestRef("import-"+time.Now().Format("2006-01-02"), true, true)), nil
	}
	full, err := fullName(base)
	if err != nil {
		return nil, err
	}
	return append(opts, image.WithNamedPrefix(baseName(full), false)), nil
}

// imageTargets lists the images that are here, to find the new ones later.
func (s *session) imageTargets(ctx context.Context) (map[string]images.Image, error) {
	list, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	m := make(map[string]images.Image, len(list))
	for _, img := range list {
		m[img.Name] = img
	}
	return m, nil
}

// finishImport prints the names that were loaded, and gives the wanted one.
func (s *session) finishImport(ctx context.Context, archive, tag string, saved []string, before map[string]images.Image) error {
	if len(saved) == 0 {
		after, err := s.imageTargets(ctx)
		if err != nil {
			return err
		}
		for name, img := range after {
			if old, ok := before[name]; !ok || !old.UpdatedAt.Equal(img.UpdatedAt) {
				saved = append(saved, name)
			}
		}
	}
	if len(saved) == 0 {
		return fmt.Errorf("archive %s: no image in it has a name or fits this platform (see --tag, --base-name and --all-platforms)", archive)
	}
	if tag == "" {
		for _, name := range saved {
			s.printf("%s\n", name)
		}
		return nil
	}
	return s.retag(ctx, archive, tag, saved, before)
}

// retag gives the one image of an archive the name that the user wants, and
// takes the archive's own name away where the import made it.
func (s *session) retag(ctx context.Context, archive, tag string, saved []string, before map[string]images.Image) error {
	full, err := fullName(tag)
	if err != nil {
		return err
	}
	first, err := s.client.ImageService().Get(ctx, saved[0])
	if err != nil {
		return imageError(saved[0], err)
	}
	for _, name := range saved[1:] {
		img, err := s.client.ImageService().Get(ctx, name)
		if err != nil {
			return imageError(name, err)
		}
		if img.Target.Digest != first.Target.Digest {
			return fmt.Errorf("archive %s: it has %d images, and --tag is for one (they keep their own names)", archive, len(saved))
		}
	}
	if err := s.tag(ctx, first.Name, full, true); err != nil {
		return err
	}
	for _, name := range saved {
		if _, was := before[name]; !was && name != full {
			if err := s.client.ImageService().Delete(ctx, name); err != nil {
				return imageError(name, err)
			}
		}
	}
	s.printf("%s\n", full)
	return nil
}

// savedImages picks the names of the images that were stored out of the
// progress of a transfer.
type savedImages struct {
	next  transfer.ProgressFunc
	mu    sync.Mutex
	names []string // guarded by mu
}

func (w *savedImages) update(p transfer.Progress) {
	if p.Event == "saved" {
		w.mu.Lock()
		w.names = append(w.names, p.Name)
		w.mu.Unlock()
	}
	w.next(p)
}

func (w *savedImages) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.names
}

// counted counts what is read through it.
type counted struct {
	r io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}
