// Build builds a Dockerfile with BuildKit and Berth in one process, with no
// daemon: build DIR CONTEXT OUTPUT. What it keeps is in DIR.
package main

import (
	"context"
	"log"
	"net"
	"os"
	"path/filepath"

	bkclient "github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/berthd/berth/engine"
	"github.com/berthd/berth/engine/shim"
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
	if shim.Called() { // the program is its own shim
		shim.Main()
	}
	ctx, dir := context.Background(), must(filepath.Abs(os.Args[1]))
	must(0, os.MkdirAll(dir, 0o711))
	e := must(engine.Open(ctx, engine.Config{Root: dir + "/engine", State: dir + "/run", ShimBinary: must(shim.Link(dir))}))
	w := must(worker.New(ctx, must(e.Client()), worker.Config{
		Root: dir + "/buildkit", Executor: executor.Config{Root: dir + "/steps"},
	}))
	server := must(worker.NewServer(w, worker.ServerConfig{}))
	socket := must(net.Listen("unix", dir+"/build.sock"))
	go func() { must(0, server.Serve(socket)) }()
	c := must(bkclient.New(ctx, "unix://"+socket.Addr().String()))
	files := must(fsutil.NewFS(os.Args[2]))
	must(c.Solve(ctx, nil, bkclient.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports:     []bkclient.ExportEntry{{Type: bkclient.ExporterLocal, OutputDir: os.Args[3]}},
	}, nil))
	must(0, server.Close())
	must(0, e.Close(ctx))
}
