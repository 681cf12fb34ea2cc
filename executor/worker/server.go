package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/cache/remotecache/local"
	"github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	bkworker "github.com/moby/buildkit/worker"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// ServerConfig of a [Server]. The zero value builds Dockerfiles.
type ServerConfig struct {
	// Entitlements are what builds may ask for: "network.host",
	// "security.insecure", "device".
	Entitlements []string
	// Frontends are the repositories that builds may take frontends from; nil is
	// any.
	Frontends []string
	// History says how long build records stay; nil is BuildKit's default.
	History *config.HistoryConfig
}

// Server answers BuildKit's clients.
type Server struct {
	grpc       *grpc.Server
	controller *control.Controller
	stop       context.CancelFunc
	once       sync.Once
	closed     error // written by once
}

// NewServer makes a server on a worker, whose root it uses too, and which it
// closes. The caller closes the server; if it cannot be made the worker stays
// the caller's.
func NewServer(w *Worker, cfg ServerConfig) (*Server, error) {
	sessions, err := session.NewManager()
	if err != nil {
		return nil, fmt.Errorf("make build server: %w", err)
	}
	wc := &bkworker.Controller{}
	if err := wc.Add(w); err != nil {
		return nil, fmt.Errorf("make build server: %w", err)
	}
	gw, err := gateway.NewGatewayFrontend(wc.Infos(), cfg.Frontends)
	if err != nil {
		return nil, fmt.Errorf("make build server: %w", err)
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(w.Root, "cache.db"))
	if err != nil {
		return nil, fmt.Errorf("make build server: open cache: %w", err)
	}
	history, err := boltutil.SafeOpen(filepath.Join(w.Root, "history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make build server: open history: %w", err), cache.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{stop: cancel}
	s.controller, err = control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: wc,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(wc.Infos(), dockerfile.Build),
			"gateway.v0":    gw,
		},
		ResolveCacheExporterFuncs: exporters(sessions, w.RegistryHosts),
		ResolveCacheImporterFuncs: importers(sessions, w),
		CacheManager:              solver.NewCacheManager(ctx, "local", cache, bkworker.NewCacheResultStorage(wc)),
		Entitlements:              cfg.Entitlements,
		HistoryDB:                 history,
		HistoryConfig:             cfg.History,
		CacheStore:                cache,
		LeaseManager:              w.LeaseManager(),
		ContentStore:              w.ContentStore(),
		GarbageCollect:            w.GarbageCollect,
		GracefulStop:              ctx.Done(),
	})
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("make build server: %w", err), history.Close(), cache.Close())
	}
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	healthv1.RegisterHealthServer(s.grpc, health.NewServer())
	s.controller.Register(s.grpc)
	return s, nil
}

func exporters(sm *session.Manager, hosts docker.RegistryHosts) map[string]remotecache.ResolveCacheExporterFunc {
	return map[string]remotecache.ResolveCacheExporterFunc{
		"registry": registry.ResolveCacheExporterFunc(sm, hosts),
		"local":    local.ResolveCacheExporterFunc(sm),
		"inline":   inline.ResolveCacheExporterFunc(),
	}
}

func importers(sm *session.Manager, w *Worker) map[string]remotecache.ResolveCacheImporterFunc {
	return map[string]remotecache.ResolveCacheImporterFunc{
		"registry": registry.ResolveCacheImporterFunc(sm, w.ContentStore(), w.RegistryHosts),
		"local":    local.ResolveCacheImporterFunc(sm),
	}
}

// Serve answers the clients that come in through l until Close, then returns
// nil. It closes l.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// Close cancels the builds that run, waits for their end and closes the worker.
// It is idempotent.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.stop()
		s.grpc.Stop() // breaks off its calls, and with them their builds, and waits for both
		s.closed = s.controller.Close()
	})
	return s.closed
}
