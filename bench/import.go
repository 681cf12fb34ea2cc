package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	largeImage = "berth.test/large:1"
	// largeLayers have largeMiB each, beside the one with busybox.
	largeLayers, largeMiB = 3, 16
)

// measureImport times `images import` of an archive: its content is stored, its
// layers are unpacked.
func (l *lab) measureImport(ctx context.Context) ([]figure, error) {
	tar := filepath.Join(l.dir, "large.tar")
	make := l.command(ctx, "go", "run", "./test/demoimage", largeImage, tar, strconv.Itoa(largeLayers), strconv.Itoa(largeMiB))
	if err := make.run(); err != nil {
		return nil, err
	}
	var variants []variant
	for _, e := range l.engines {
		add := func(name string, load func(context.Context) command) {
			variants = append(variants, variant{name, func(ctx context.Context, _ int) (time.Duration, error) {
				took, err := load(ctx).time()
				return took, errors.Join(err, e.ctr(ctx, "images", "rm", "--sync", largeImage).run())
			}})
		}
		add("ctr on "+e.name, func(ctx context.Context) command { return e.ctr(ctx, "images", "import", tar) })
		if e.name == berth {
			add("berth", func(ctx context.Context) command { return e.berth(ctx, "import", tar) })
		}
	}
	figures, err := l.interleave(ctx, fmt.Sprintf("import, %d MiB", largeLayers*largeMiB), min(l.opts.rounds, slowRounds), variants)
	return figures, errors.Join(err, os.Remove(tar))
}
