package harness

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// Variant is one way to do what a benchmark is about.
type Variant struct {
	Name string
	Do   func() error
}

// Compare times the variants. All take turns in every round, which is an
// iteration of the benchmark, so that what else the machine does falls on all
// alike. A metric is the median of the rounds; the table printed compares it with
// that of the first variant.
func Compare(b *testing.B, unit string, variants []Variant) {
	b.Helper()
	took := make([][]time.Duration, len(variants))
	once := func(i int) time.Duration {
		begin := time.Now()
		if err := variants[i].Do(); err != nil {
			b.Fatalf("%s: %v", variants[i].Name, err)
		}
		return time.Since(begin)
	}
	for i := range variants {
		once(i) // what is made once is made
	}
	for round := 0; b.Loop(); round++ {
		for i := range variants {
			i = (i + round) % len(variants)
			took[i] = append(took[i], once(i))
		}
	}
	var first time.Duration
	for i, v := range variants {
		slices.Sort(took[i])
		median := took[i][len(took[i])/2]
		if i == 0 {
			first = median
		}
		ms := float64(median) / float64(time.Millisecond)
		b.ReportMetric(ms, v.Name+"-ms/"+unit)
		fmt.Fprintf(os.Stderr, "%-18s %7.1f ms  %.2f\n", v.Name, ms, float64(median)/float64(first))
	}
}
