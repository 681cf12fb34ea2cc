// Run runs a container from an OCI archive, with no daemon: run ARCHIVE COMMAND [ARG…].
package main

import (
	"context"
	"log"
	"os"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/berthd/berth/engine"
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func main() {
	ctx := namespaces.WithNamespace(context.Background(), "example")
	e := must(engine.Open(ctx, engine.Config{Root: "/var/lib/berth-example", State: "/run/berth-example"}))
	c := must(e.Client())
	image := client.NewImage(c, must(c.Import(ctx, must(os.Open(os.Args[1]))))[0])
	must(0, image.Unpack(ctx, ""))
	container := must(c.NewContainer(ctx, "example", client.WithNewSnapshot("example", image),
		client.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs(os.Args[2:]...))))
	task := must(container.NewTask(ctx, cio.NewCreator(cio.WithStdio)))
	exit := must(task.Wait(ctx))
	must(0, task.Start(ctx))
	log.Println("exit code", (<-exit).ExitCode())
	must(task.Delete(ctx))
	must(0, container.Delete(ctx, client.WithSnapshotCleanup))
	must(0, e.Close(ctx))
}
