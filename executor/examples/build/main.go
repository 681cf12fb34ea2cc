// Build builds a Dockerfile with BuildKit and Berth in one process, with no daemon: build CONTEXT OUTPUT.
package main

import (
	"context"
	"log"
	"net"
	"os"

	bkclient "github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/executor/worker"
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func main() {
	ctx, root := context.Background(), "/var/lib/berth-build"
	e := must(engine.Open(ctx, engine.Config{Root: root, State: "/run/berth-build"}))
	w := must(worker.New(ctx, must(e.Client()), worker.Config{
		Root: root + "/buildkit", Executor: executor.Config{Root: "/run/berth-build/steps"},
	}))
	server := must(worker.NewServer(w, worker.ServerConfig{}))
	socket := must(net.Listen("unix", "/run/berth-build/build.sock"))
	go func() { must(0, server.Serve(socket)) }()
	c := must(bkclient.New(ctx, "unix://"+socket.Addr().String()))
	files := must(fsutil.NewFS(os.Args[1]))
	must(c.Solve(ctx, nil, bkclient.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports:     []bkclient.ExportEntry{{Type: bkclient.ExporterLocal, OutputDir: os.Args[2]}},
	}, nil))
	must(0, server.Close())
	must(0, e.Close(ctx))
}
