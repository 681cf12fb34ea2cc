// Package executor runs BuildKit's build steps on Berth, or on any daemon that
// speaks containerd's API.
//
//	e, err := executor.New(client, executor.Config{})
//	…
//	defer e.Close()
//	rec, err := e.Run(ctx, "", root, mounts, process, nil)
//
// A step is a container with the step's own root file system: no image, no
// snapshot. When Run returns, nothing of the step is left, whatever ended it.
// docs/executor.md compares it with BuildKit's own executors.
package executor
