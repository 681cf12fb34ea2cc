package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"sync"
	"time"
)

// debugServer serves Go's profiles, if it is asked to.
type debugServer struct {
	server  *http.Server
	running sync.WaitGroup
	err     error // what serving ended with; set before running is done
}

// serveDebug serves profiles on a unix socket that only root can open. An empty
// address is served by nobody. The caller closes it.
func serveDebug(address string) (*debugServer, error) {
	d := &debugServer{}
	if address == "" {
		return d, nil
	}
	if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("debug socket: %w", err)
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return nil, fmt.Errorf("debug socket: %w", err)
	}
	if err := os.Chmod(address, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("debug socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	d.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	d.running.Go(func() {
		if err := d.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.err = err
		}
	})
	return d, nil
}

func (d *debugServer) close() error {
	if d.server == nil {
		return nil
	}
	err := d.server.Close()
	d.running.Wait()
	return errors.Join(err, d.err)
}
