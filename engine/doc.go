// Package engine is Berth inside a program: storage, runtime and events behind
// containerd's own Go client, without a daemon and without gRPC.
//
//	e, err := engine.Open(ctx, engine.Config{Root: "/var/lib/app", State: "/run/app"})
//	…
//	defer e.Close(ctx)
//	client, err := e.Client()
//
// Containers do not belong to the program that started them: they go on when
// the engine is closed or the program dies, and the next Open of the same root
// and state takes them up. berthd is this package with a socket.
package engine
