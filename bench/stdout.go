package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// How much each run writes, in blocks as programs write them.
const (
	stdoutBlock  = 64 << 10
	stdoutBlocks = 8 << 10
	stdoutMiB    = stdoutBlock * stdoutBlocks >> 20
)

// measureStdout measures how fast the output of a container comes to the one
// who runs the client, who reads a pipe. The start does not count: the clock
// runs from the first byte to the end.
func (l *lab) measureStdout(ctx context.Context) ([]figure, error) {
	write := []string{"dd", "if=/dev/zero", fmt.Sprintf("bs=%d", stdoutBlock), fmt.Sprintf("count=%d", stdoutBlocks)}
	var variants []variant
	for _, e := range l.engines {
		variants = append(variants, variant{"ctr on " + e.name, func(ctx context.Context, n int) (time.Duration, error) {
			return e.ctr(ctx, append([]string{"run", "--rm", image, fmt.Sprintf("out%d", n)}, write...)...).drain()
		}})
		if e.name == berth {
			variants = append(variants, variant{"berth", func(ctx context.Context, _ int) (time.Duration, error) {
				return e.berth(ctx, append([]string{"run", "--rm", image}, write...)...).drain()
			}})
		}
	}
	variants = append(variants, variant{"plain pipe", func(ctx context.Context, _ int) (time.Duration, error) {
		return l.command(ctx, write[0], write[1:]...).drain()
	}})
	figures, err := l.interleave(ctx, fmt.Sprintf("stdout, %d MiB", stdoutMiB), l.opts.rounds, variants)
	for i, f := range figures {
		rate := func(ms float64) float64 { return stdoutMiB / ms * 1000 }
		figures[i].Unit, figures[i].Value = "MiB/s", rate(f.Value)
		figures[i].Min, figures[i].Max = rate(f.Max), rate(f.Min)
	}
	return figures, err
}

// drain runs the program and reads all that it writes; the time is from the
// first byte on.
func (c command) drain() (_ time.Duration, err error) {
	defer c.cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	c.Stdout = w
	err = errors.Join(c.Start(), w.Close())
	if err != nil {
		return 0, err
	}
	buf := make([]byte, stdoutBlock)
	n, readErr := r.Read(buf)
	began := time.Now()
	// Hidden behind plain interfaces: io.Copy would not use the buffer.
	rest, copyErr := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
	took := time.Since(began)
	err = errors.Join(readErr, copyErr, c.Wait())
	if total := int64(n) + rest; err == nil && total != stdoutMiB<<20 {
		err = fmt.Errorf("%d bytes came", total)
	}
	if err != nil {
		return 0, fmt.Errorf("%v: %w", c.Args, err)
	}
	return took, nil
}
