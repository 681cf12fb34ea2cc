package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"

	"github.com/berthd/berth/test/harness"
)

// The program serves with the engine inside, and on a daemon, and ends clean.
func TestServe(t *testing.T) {
	for name, more := range map[string]func(t *testing.T) []string{
		"engine": func(t *testing.T) []string { return []string{"--shim", harness.Shim(t)} },
		"berthd": func(t *testing.T) []string {
			d := harness.Start(t, harness.Config{NoImage: true, NoLeakCheck: true})
			return []string{"--containerd", d.Address, "--namespace", d.Namespace}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			address := "unix://" + filepath.Join(dir, "b.sock")
			args := append([]string{
				"berth-buildkitd", "--addr", address, "--net", "host", "--step-time", "1h", "--step-memory", "1g",
				"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "run"),
			}, more(t)...)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- app().Run(ctx, args) }()
			c, err := bkclient.New(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			harness.Await(t, time.Minute, "a worker", func() bool {
				select {
				case err := <-ended:
					t.Fatalf("it ended: %v", err)
				default:
				}
				w, err := c.ListWorkers(t.Context())
				return err == nil && len(w) == 1 && w[0].Labels["org.mobyproject.buildkit.worker.executor"] == "berth"
			})
			def, err := llb.Scratch().File(llb.Mkfile("/hello", 0o644, []byte("hello"))).Marshal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Solve(t.Context(), def, bkclient.SolveOpt{}, nil); err != nil {
				t.Error(err)
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSettingsRefused(t *testing.T) {
	for _, args := range [][]string{
		{"--config", "/nonexistent"}, {"--addr", "tcp://0.0.0.0:1"}, {"--step-memory", "much"}, {"--group", "no such group"},
	} {
		dir := t.TempDir()
		args = append([]string{"berth-buildkitd", "--root", dir, "--state", dir + "/s", "--shim", "/bin/false"}, args...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := app().Run(ctx, args); err == nil {
			t.Errorf("%q is taken", args)
		}
		cancel()
	}
}
