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
	r, calls := counting(t, `echo '{"annotations":{"org.opencontainers.runc.version":"1.2.0"}}'`)
	var cache ociruntime.FeatureCache
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			f, err := cache.Features(ctx(t), r)
			if err != nil || !f.Documented() || f.Runtime.String() != "runc 1.2.0 ("+r.Binary+")" {
				t.Errorf("features %+v, %v", f, err)
			}
		})
	}
	wg.Wait()
	if got := calls(); got != 1 {
		t.Errorf("the runtime was asked %d times", got)
	}

	// Another binary under the same path is asked again.
	other, otherCalls := counting(t, `echo '{"annotations":{"org.opencontainers.runc.version":"1.3.0"}}'`)
	if err := os.Rename(other.Binary, r.Binary); err != nil {
		t.Fatal(err)
	}
	f, err := cache.Features(ctx(t), r)
	if err != nil || f.Runtime.Version != "1.3.0" || otherCalls() != 1 {
		t.Errorf("features of the new binary: %+v, %v", f, err)
	}
}

// A runtime without features is known by its version, if it has one.
func TestFeatureCacheWithoutFeatures(t *testing.T) {
	for body, want := range map[string]string{
		`[ "$1" = --version ] && { echo crun version 1.8.1; echo spec: 1.0.0; exit; }; echo "unknown command features" >&2; exit 1`: "crun 1.8.1",
		`[ "$1" = --version ] && { echo crun version 1.8.1; exit; }; echo "not JSON"`:                                               "crun 1.8.1",
		`echo "No help topic for '$1'" >&2; exit 3`:                                                                                 "",
	} {
		var cache ociruntime.FeatureCache
		r, calls := counting(t, body)
		for range 3 {
			f, err := cache.Features(ctx(t), r)
			if err != nil || f.Documented() || strings.TrimSpace(f.Runtime.Name+" "+f.Runtime.Version) != want {
				t.Errorf("%+v, %v", f, err)
			}
		}
		if got := calls(); got != 2 {
			t.Errorf("it was asked %d times, not for features and version once", got)
		}
	}
}

func TestFeatureCacheErrors(t *testing.T) {
	var cache ociruntime.FeatureCache
	// That a call took too long says nothing of the binary.
	slow, calls := counting(t, "sleep 1000")
	slow.Timeout = 200 * time.Millisecond
	for range 2 {
		_, err := cache.Features(ctx(t), slow)
		wantError(t, err, "features", nil, "timed out")
	}
	if got := calls(); got != 2 {
		t.Errorf("a slow binary was asked %d times", got)
	}

	gone := &ociruntime.Runtime{Binary: "/no/such/runtime"}
	_, err := cache.Features(ctx(t), gone)
	wantError(t, err, "features", errdefs.ErrNotFound, "was not found")

	c, cancel := context.WithCancel(ctx(t))
	cancel()
	fresh, _ := counting(t, "echo {}")
	if _, err := cache.Features(c, fresh); err == nil {
		t.Error("features with a context that has ended")
	}
}
