package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/transfer/archive"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/attach"
)

func (a *App) exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Aliases:   []string{"save"},
		Usage:     "write images to a tar archive",
		ArgsUsage: "IMAGE…",
		Category:  "Images",
		Description: `The archive is an OCI layout that docker load takes too. Examples:
  berth export -o alpine.tar alpine
  berth export alpine | ssh host berth import`,
		Flags: []cli.Flag{
			str("output", "write to a `FILE` instead of standard output", "o"),
			str("platform", "write for a `PLATFORM`, e.g. linux/arm64"),
			yes("all-platforms", "write what is here for every platform"),
			yes("quiet", "show no progress", "q"),
			yes("json", "print the progress as JSON objects, a line each; needs --output"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if !cmd.Args().Present() {
				return usageError("an image is missing (berth export IMAGE)")
			}
			name := cmd.String("output")
			if (name == "" || name == "-") && attach.IsTerminal(a.Stdout) {
				return usageError("an archive is not for a terminal (use -o FILE, or a pipe)")
			}
			opts, err := exportOptions(cmd)
			if err != nil {
				return err
			}
			mode, err := readProgress(cmd)
			if err != nil {
				return err
			}
			if mode == progressJSON && (name == "" || name == "-") {
				return usageError("--json needs --output FILE: the archive goes to standard output")
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.export(ctx, cmd.Args().Slice(), name, mode, opts)
			})
		},
	}
}

func exportOptions(cmd *cli.Command) ([]archive.ExportOpt, error) {
	if cmd.Bool("all-platforms") {
		if cmd.String("platform") != "" {
			return nil, usageError("--platform and --all-platforms exclude each other")
		}
		return []archive.ExportOpt{archive.WithAllPlatforms}, nil
	}
	p := platforms.DefaultSpec()
	if s := cmd.String("platform"); s != "" {
		var err error
		if p, err = platforms.Parse(s); err != nil {
			return nil, fmt.Errorf("platform %q: %w (use os/arch[/variant])", s, err)
		}
	}
	return []archive.ExportOpt{archive.WithPlatform(p)}, nil
}

// export writes to a file that appears when it is complete.
func (s *session) export(ctx context.Context, names []string, file string, mode progressMode, opts []archive.ExportOpt) (err error) {
	var refs []image.StoreOpt
	var written []string
	for _, name := range names {
		img, err := s.findImage(ctx, name)
		if err != nil {
			return err
		}
		refs, written = append(refs, image.WithExtraReference(img.Name)), append(written, img.Name)
	}
	out := s.Stdout
	if file != "" && file != "-" {
		if out, err = os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*"); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		defer func() {
			err = errors.Join(err, out.Close())
			if err == nil {
				err = os.Rename(out.Name(), file)
			}
			if err != nil {
				_ = os.Remove(out.Name())
			}
		}()
		if err := out.Chmod(0o644); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
	// The stream writes in the background; its Close says that all is written.
	progress := s.progress(mode)
	defer progress.end()
	body := &counted{w: out, name: firstOf(file, "standard output"), event: "writing", progress: progress}
	w := &notifyClose{Writer: body, closed: make(chan struct{})}
	if err := s.transfer(ctx, image.NewStore("", refs...), archive.NewImageExportStream(w, "", opts...), progress); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err := w.await(ctx); err != nil {
		return err
	}
	progress.end()
	for _, name := range written {
		if mode == progressJSON {
			s.done(mode, name)
		}
	}
	return nil
}

// await waits for the end of the archive. A daemon that has told of its success
// may not close the stream (stock containerd, seldom): then an archive that has
// its end mark, 1,024 zeros, and grows no more is whole.
func (w *notifyClose) await(ctx context.Context) error {
	const silence = 10 * time.Second
	for last := int64(-1); ; {
		select {
		case <-w.closed:
			return w.err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(silence):
		}
		n := w.written.Load()
		switch {
		case n != last:
			last = n
		case w.zeros.Load() >= 1024:
			return nil
		default:
			return fmt.Errorf("export: the daemon does not end the archive: %w", errdefs.ErrUnavailable)
		}
	}
}

// notifyClose keeps the writer open and says when it would be closed, and
// which error a write had. One goroutine writes and closes.
type notifyClose struct {
	io.Writer
	err    error // read after closed
	closed chan struct{}
	// written counts bytes, zeros those at the end that are 0.
	written, zeros atomic.Int64
}

func (w *notifyClose) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.written.Add(int64(n))
	if rest := bytes.TrimRight(p[:n], "\x00"); len(rest) == 0 {
		w.zeros.Add(int64(n))
	} else {
		w.zeros.Store(int64(n - len(rest)))
	}
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("archive: %w", err)
	}
	return n, err
}

func (w *notifyClose) Close() error {
	close(w.closed)
	return nil
}
