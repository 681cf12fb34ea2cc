package ociruntime_test

import (
	"context"
	"os/exec"
	"testing"

	"github.com/berthd/berth/internal/ociruntime"
)

// BenchmarkCall is what a call costs beside the runtime's own work, to be compared with
// BenchmarkExec.
func BenchmarkCall(b *testing.B) {
	r := ociruntime.Runtime{Binary: "/bin/true", LogPath: b.TempDir() + "/log.json"}
	for b.Loop() {
		if err := r.Start(context.Background(), "x"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}
