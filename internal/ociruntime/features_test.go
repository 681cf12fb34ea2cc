package ociruntime_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/ociruntime"
)

// counting makes a runtime that notes each call and then runs a body.
func counting(t *testing.T, body string) (r *ociruntime.Runtime, calls func() int) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "calls")
	r = &ociruntime.Runtime{Binary: script(t, "echo call >> "+log+"\n"+body)}
	return r, func() int {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "call")
	}
}

func TestFeatureCache(t *testing.T) {
	r, calls := counting(t, `echo '{"ociVersionMax":"1.2.0"}'`)
	var cache ociruntime.FeatureCache
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			f, raw, err := cache.Features(ctx(t), r)
			if err != nil || f.OCIVersionMax != "1.2.0" || !strings.Contains(string(raw), "1.2.0") {
				t.Errorf("features %+v, %q, %v", f, raw, err)
			}
		})
	}
	wg.Wait()
	if got := calls(); got != 1 {
		t.Errorf("the runtime was asked %d times", got)
	}

	// Another binary under the same path is asked again.
	other, otherCalls := counting(t, `echo '{"ociVersionMax":"1.3.0"}'`)
	if err := os.Rename(other.Binary, r.Binary); err != nil {
		t.Fatal(err)
	}
	f, _, err := cache.Features(ctx(t), r)
	if err != nil || f.OCIVersionMax != "1.3.0" || otherCalls() != 1 {
		t.Errorf("features of the new binary: %+v, %v", f, err)
	}
}

func TestFeatureCacheErrors(t *testing.T) {
	var cache ociruntime.FeatureCache
	r, calls := counting(t, `echo "No help topic for 'features'" >&2; exit 3`)
	for range 3 {
		_, _, err := cache.Features(ctx(t), r)
		wantError(t, err, "features", errdefs.ErrNotImplemented, "No help topic")
	}
	if got := calls(); got != 1 {
		t.Errorf("a binary without features was asked %d times", got)
	}

	// That a call took too long says nothing of the binary.
	slow, calls := counting(t, "sleep 1000")
	slow.Timeout = 200 * time.Millisecond
	for range 2 {
		_, _, err := cache.Features(ctx(t), slow)
		wantError(t, err, "features", nil, "timed out")
	}
	if got := calls(); got != 2 {
		t.Errorf("a slow binary was asked %d times", got)
	}

	gone := &ociruntime.Runtime{Binary: "/no/such/runtime"}
	_, _, err := cache.Features(ctx(t), gone)
	wantError(t, err, "features", errdefs.ErrNotFound, "was not found")

	c, cancel := context.WithCancel(ctx(t))
	cancel()
	fresh, _ := counting(t, "echo {}")
	if _, _, err := cache.Features(c, fresh); err == nil {
		t.Error("features with a context that has ended")
	}
}
