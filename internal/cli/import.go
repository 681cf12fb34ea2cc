package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
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
		Flags: append([]cli.Flag{
			str("tag", "`NAME` for the image, for an archive with one", "t"),
			str("base-name", "`NAME` to which tags in the archive are added"),
			str("platform", "load for a `PLATFORM`, e.g. linux/arm64"),
			yes("all-platforms", "load for every platform, and unpack this one's"),
			yes("no-unpack", "leave the unpacking to the first run"),
			list("label", "`KEY=VALUE` on the images"),
			&cli.StringFlag{Name: "snapshotter", Usage: "`NAME` of the snapshotter", Sources: cli.EnvVars("CONTAINERD_SNAPSHOTTER")},
		}, progressFlags("names")...),
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
	tag, base := cmd.String("tag"), cmd.String("base-name")
	if tag != "" && base != "" {
		return usageError("--tag and --base-name exclude each other")
	}
	if tag != "" {
		if tag, err = fullName(tag); err != nil {
			return err
		}
	}
	if base != "" {
		if base, err = fullName(base); err != nil {
			return err
		}
		base = baseName(base)
	}
	mode, err := readProgress(cmd)
	if err != nil {
		return err
	}
	return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
		return s.load(ctx, in, &loading{archive: name, opts: opts, tag: tag, base: base, progress: mode})
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
	return opts, nil
}

// loading is an archive to be loaded.
type loading struct {
	archive  string // as the user named it
	opts     []image.StoreOpt
	tag      string // full name for the one image in it, or empty
	base     string // what tags in the archive are added to, or empty
	progress progressMode
}

// load sends the archive to the daemon and prints the names that came of it.
func (s *session) load(ctx context.Context, in *os.File, l *loading) error {
	progress := s.progress(l.progress)
	body := &counted{r: in, name: l.archive, event: "reading", progress: progress}
	if st, err := in.Stat(); err == nil && st.Mode().IsRegular() {
		body.total = st.Size()
	}
	refs := image.WithNamedPrefix(firstOf(l.base, "import-"+time.Now().Format("2006-01-02")), l.base == "")
	// Under a tag, no name in the archive counts: every image of it gets a
	// name that nobody else has, until it is known that there is one image.
	prefix := "berth-import-" + newID()
	if l.tag != "" {
		refs = image.WithDigestRef(prefix, false, false)
		defer s.removeImages(ctx, prefix)
	}
	before, err := s.imageTimes(ctx)
	if err != nil {
		return err
	}
	err = s.transfer(ctx, archive.NewImageImportStream(body, ""), image.NewStore("", append(l.opts, refs)...), progress)
	progress.end()
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil && body.n.Load() == 0:
		return fmt.Errorf("archive %s: it is empty (use an archive of docker save or an OCI layout)", l.archive)
	case err != nil:
		return fmt.Errorf("archive %s: import: %w", l.archive, err)
	case l.tag != "":
		return s.tagLoaded(ctx, l, prefix)
	}
	after, err := s.imageTimes(ctx)
	if err != nil {
		return err
	}
	var names []string
	for name, at := range after {
		if old, ok := before[name]; !ok || !old.Equal(at) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("archive %s: no image in it has a name (give one with --tag)", l.archive)
	}
	slices.Sort(names)
	for _, name := range names {
		s.done(l.progress, name)
	}
	return nil
}

// imageTimes says when each image was last changed.
func (s *session) imageTimes(ctx context.Context) (map[string]time.Time, error) {
	list, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	m := make(map[string]time.Time, len(list))
	for _, img := range list {
		m[img.Name] = img.UpdatedAt
	}
	return m, nil
}

// underPrefix lists what an import stored under a prefix of its own.
func (s *session) underPrefix(ctx context.Context, prefix string) ([]images.Image, error) {
	list, err := s.client.ImageService().List(ctx, "name~=^"+prefix+"@")
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return list, nil
}

// removeImages removes what an import stored under a prefix of its own.
func (s *session) removeImages(ctx context.Context, prefix string) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	list, err := s.underPrefix(ctx, prefix)
	for _, img := range list {
		if e := s.client.ImageService().Delete(ctx, img.Name); e != nil && !errdefs.IsNotFound(e) {
			err = e
		}
	}
	if err != nil {
		s.warnf("import: names %s@… are left behind: %v (berth rmi)", prefix, err)
	}
}

// tagLoaded gives the one image of an archive its name. The archive's own
// index is stored too; it is the one that lists the others.
func (s *session) tagLoaded(ctx context.Context, l *loading, prefix string) error {
	list, err := s.underPrefix(ctx, prefix)
	if err != nil {
		return err
	}
	docs, err := s.documents()
	if err != nil {
		return err
	}
	if len(list) > 1 {
		inner := make(map[digest.Digest]bool)
		for _, img := range list {
			if !images.IsIndexType(img.Target.MediaType) {
				continue
			}
			children, err := images.Children(ctx, docs, img.Target)
			if err != nil {
				return fmt.Errorf("archive %s: %w", l.archive, err)
			}
			for _, c := range children {
				inner[c.Digest] = true
			}
		}
		list = slices.DeleteFunc(list, func(img images.Image) bool { return !inner[img.Target.Digest] })
	}
	if len(list) != 1 {
		return fmt.Errorf("archive %s: it has %d images, and --tag is for one (leave it out to keep their own names)", l.archive, len(list))
	}
	if err := s.tag(ctx, list[0].Name, l.tag, true); err != nil {
		return err
	}
	s.done(l.progress, l.tag)
	return nil
}

// counted counts what is read or written through it, and shows it.
type counted struct {
	r        io.Reader
	w        io.Writer
	n        atomic.Int64
	total    int64 // bytes, 0 where that is not known
	name     string
	event    string
	progress *progressView
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.add(n)
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.add(n)
	return n, err
}

func (c *counted) add(n int) {
	if n > 0 {
		c.progress.update(transfer.Progress{Event: c.event, Name: c.name, Progress: c.n.Add(int64(n)), Total: c.total})
	}
}
