package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// variant is one way to do what a timed row is about. do gets a number that no
// other call has.
type variant struct {
	name string
	do   func(ctx context.Context, n int) (time.Duration, error)
}

// measureRun times `run --rm IMAGE true`.
func (l *lab) measureRun(ctx context.Context) ([]figure, error) {
	var variants []variant
	for _, e := range l.engines {
		variants = append(variants, variant{"ctr on " + e.name, func(ctx context.Context, n int) (time.Duration, error) {
			return e.ctr(ctx, "run", "--rm", image, fmt.Sprintf("run%d", n), "true").time()
		}})
		if e.name == berth {
			variants = append(variants, variant{"berth", func(ctx context.Context, n int) (time.Duration, error) {
				return e.berth(ctx, "run", "--rm", image, "true").time()
			}})
		}
	}
	variants = append(variants, variant{"bare runc", func(ctx context.Context, n int) (time.Duration, error) {
		return l.bare(ctx, "run", "--bundle", l.bundle, fmt.Sprintf("run%d", n)).time()
	}})
	return l.interleave(ctx, "run --rm true", l.opts.rounds, variants)
}

// measureExec times `exec CONTAINER true` in a container that idles.
func (l *lab) measureExec(ctx context.Context) (_ []figure, err error) {
	const id = "idle"
	var variants []variant
	for _, e := range l.engines {
		if err := e.ctr(ctx, "run", "--detach", "--null-io", image, id, "sleep", "100000").run(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, e.remove(id)) }()
		variants = append(variants, variant{"ctr on " + e.name, func(ctx context.Context, n int) (time.Duration, error) {
			return e.ctr(ctx, "tasks", "exec", "--exec-id", fmt.Sprintf("e%d", n), id, "true").time()
		}})
		if e.name == berth {
			variants = append(variants, variant{"berth", func(ctx context.Context, n int) (time.Duration, error) {
				return e.berth(ctx, "exec", id, "true").time()
			}})
		}
	}
	end, err := l.idleBare(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	variants = append(variants, variant{"bare runc", func(ctx context.Context, _ int) (time.Duration, error) {
		return l.bare(ctx, "exec", id, "true").time()
	}})
	return l.interleave(ctx, "exec true", l.opts.rounds, variants)
}

// interleave lets the variants take turns, each round in another order, after
// two rounds that do not count.
func (l *lab) interleave(ctx context.Context, row string, rounds int, variants []variant) ([]figure, error) {
	const warmUp = 2
	took := make([][]float64, len(variants))
	n := 0
	for round := range warmUp + rounds {
		for i := range variants {
			v := (i + round) % len(variants)
			n++
			d, err := variants[v].do(ctx, n)
			if err != nil {
				return nil, err
			}
			if round >= warmUp {
				took[v] = append(took[v], float64(d)/float64(time.Millisecond))
			}
		}
	}
	figures := make([]figure, 0, len(variants))
	for v, samples := range took {
		slices.Sort(samples)
		figures = append(figures, figure{
			Row: row, Variant: variants[v].name, Unit: "ms", Value: median(samples),
			Min: samples[0], Max: samples[len(samples)-1], Samples: len(samples),
		})
	}
	return figures, nil
}

// median of sorted samples.
func median(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
