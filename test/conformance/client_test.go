package conformance

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/test/harness"
)

// clientTypes are what containerd's Go client gives to programs, beside the
// plain gRPC clients of tasks, health and version.
var clientTypes = map[string]reflect.Type{
	"Client": reflect.TypeFor[*client.Client](), "Container": reflect.TypeFor[client.Container](), "Task": reflect.TypeFor[client.Task](),
	"Process": reflect.TypeFor[client.Process](), "Image": reflect.TypeFor[client.Image](), "Sandbox": reflect.TypeFor[client.Sandbox](),
	"EventService": reflect.TypeFor[client.EventService](), "DiffService": reflect.TypeFor[client.DiffService](),
	"ContainerService": reflect.TypeFor[containers.Store](), "ContentStore": reflect.TypeFor[content.Store](),
	"ImageService": reflect.TypeFor[images.Store](), "IntrospectionService": reflect.TypeFor[introspection.Service](),
	"LeasesService": reflect.TypeFor[leases.Manager](), "MountManager": reflect.TypeFor[mount.Manager](),
	"SandboxStore": reflect.TypeFor[sandbox.Store](), "SandboxController": reflect.TypeFor[sandbox.Controller](),
	"SnapshotService": reflect.TypeFor[snapshots.Snapshotter](), "NamespaceService": reflect.TypeFor[namespaces.Store](),
	"TransferService": reflect.TypeFor[transfer.Transferrer](),
}

// clientDifferences are the methods whose results are others with Berth.
var clientDifferences = map[string]string{
	"SandboxController.Platform": "stock does not serve it",
}

// refused are the methods that fail on both daemons here: a checkpoint because
// criu fails, the update of a mount because there is none, the update of a
// sandbox because the client does not say whose it is.
var refused = map[string]bool{
	"Container.Restore": true, "Task.Checkpoint": true, "MountManager.Update": true, "SandboxController.Update": true,
}

// calls is one client's use of one daemon. Its methods are for the test's own
// goroutine.
type calls struct {
	t   *testing.T
	d   *harness.Daemon
	ctx context.Context
	c   *client.Client
	dir string // for files

	results map[string][]string // by method
}

// volatile is what differs from one run to the next.
var volatile = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)|containerd-mount\d+|127\.0\.0\.1:\d+`)

// got records the result of a method. Only what a client may rely on goes into
// it: no pids, no times.
func (u *calls) got(method string, result any, err error) {
	u.t.Helper()
	if err == nil && refused[method] {
		u.t.Errorf("%s did not fail", method)
	}
	if err != nil {
		if !refused[method] && clientDifferences[method] == "" {
			u.t.Errorf("%s: %v", method, err)
		}
		result = "refused"
	}
	data, err := json.Marshal(result)
	if err != nil {
		u.t.Fatalf("%s: %v", method, err)
	}
	text := strings.NewReplacer(u.d.Namespace, "NS", u.d.Root, "ROOT", u.d.State, "STATE", u.d.Dir, "DIR", u.dir, "FILES").Replace(string(data))
	u.results[method] = append(u.results[method], volatile.ReplaceAllString(text, "VOLATILE"))
}

// must is for what the calls need beside.
func (u *calls) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

// Every method of containerd's Go client succeeds on both daemons, with the
// same results.
func TestClientCalls(t *testing.T) {
	t.Parallel()
	results := make(map[harness.Kind]map[string][]string)
	for _, kind := range []harness.Kind{harness.Stock, harness.Berth} {
		t.Run(string(kind), func(t *testing.T) {
			d := harness.Start(t, harness.Config{Kind: kind})
			u := &calls{t: t, d: d, c: d.Client(t), dir: t.TempDir(), results: make(map[string][]string)}
			ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), 5*time.Minute)
			defer cancel()
			u.ctx = ctx
			// Whatever criu is on the machine: it is this one that runc finds.
			u.must(os.WriteFile(filepath.Join(d.Dir, "bin", "criu"), []byte("#!/bin/sh\nexit 1\n"), 0o755))
			for _, use := range []func(){
				u.about, u.records, u.images, u.registry, u.content, u.snapshots, u.leases, u.namespaces, u.events, u.mounts,
				u.container, u.task, u.process, u.checkpoint, u.sandbox, u.end,
			} {
				use()
			}
			results[kind] = u.results
		})
	}
	if len(results) < 2 {
		return // one has failed
	}
	stock, ours := results[harness.Stock], results[harness.Berth]
	for _, method := range methods() {
		want, got := stock[method], ours[method]
		switch {
		case len(want) == 0 || len(got) == 0:
			t.Errorf("%s is not called", method)
		case slices.Equal(got, want) && clientDifferences[method] != "":
			t.Errorf("%s: is as with stock now; take it off the list", method)
		case !slices.Equal(got, want) && clientDifferences[method] == "":
			t.Errorf("%s gives\n%s\nstock gives\n%s", method, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for _, method := range slices.Sorted(maps.Keys(stock)) {
		if !slices.Contains(methods(), method) {
			t.Errorf("there is no method %s", method)
		}
	}
}

// methods are the names of all methods of clientTypes.
func methods() []string {
	var names []string
	for name, typ := range clientTypes {
		for i := range typ.NumMethod() {
			names = append(names, name+"."+typ.Method(i).Name)
		}
	}
	slices.Sort(names)
	return names
}

// about asks the daemon what it is.
func (u *calls) about() {
	v, err := u.c.Version(u.ctx)
	u.got("Client.Version", v.Version != "", err)
	server, err := u.c.Server(u.ctx)
	u.got("Client.Server", server.UUID != "", err)
	ok, err := u.c.IsServing(u.ctx)
	u.got("Client.IsServing", ok, err)
	_, ok = u.c.Conn().(grpc.ClientConnInterface)
	u.got("Client.Conn", ok, nil)
	u.got("Client.DefaultNamespace", u.c.DefaultNamespace(), nil)
	u.got("Client.Runtime", u.c.Runtime(), nil)
	info, err := u.c.RuntimeInfo(u.ctx, u.c.Runtime(), nil)
	u.got("Client.RuntimeInfo", err == nil && info.Features != nil, err)
	label, err := u.c.GetLabel(u.ctx, "containerd.io/defaults/snapshotter")
	u.got("Client.GetLabel", label, err)
	capabilities, err := u.c.GetSnapshotterCapabilities(u.ctx, "overlayfs")
	slices.Sort(capabilities)
	u.got("Client.GetSnapshotterCapabilities", capabilities, err)
	matcher, err := u.c.GetSnapshotterSupportedPlatforms(u.ctx, "overlayfs")
	u.got("Client.GetSnapshotterSupportedPlatforms", err == nil && matcher.Match(platforms.DefaultSpec()), err)

	health, err := u.c.HealthService().Check(u.ctx, &grpc_health_v1.HealthCheckRequest{})
	u.got("Client.HealthService", health.GetStatus(), err)
	answer, err := u.c.VersionService().Version(u.ctx, &emptypb.Empty{})
	u.got("Client.VersionService", answer.GetVersion() != "", err)

	in := u.c.IntrospectionService()
	u.got("Client.IntrospectionService", true, nil)
	who, err := in.Server(u.ctx)
	u.got("IntrospectionService.Server", who.GetPid() == uint64(u.d.PID()), err)
	plugins, err := in.Plugins(u.ctx, "id==overlayfs")
	u.got("IntrospectionService.Plugins", len(plugins.GetPlugins()), err)
	plugin, err := in.PluginInfo(u.ctx, "io.containerd.snapshotter.v1", "overlayfs", nil)
	u.got("IntrospectionService.PluginInfo", plugin.GetPlugin().GetID(), err)
}

// exitOf waits for an exit.
func (u *calls) exitOf(exited <-chan client.ExitStatus) uint32 {
	u.t.Helper()
	select {
	case e := <-exited:
		u.must(e.Error())
		return e.ExitCode()
	case <-u.ctx.Done():
		u.t.Fatal("there is no exit")
		return 0
	}
}

// end closes the client, which also works with its connection made anew.
func (u *calls) end() {
	c, err := client.New(u.d.Address, client.WithDefaultNamespace(u.d.Namespace), client.WithTimeout(time.Minute))
	u.must(err)
	err = c.Reconnect()
	ok, serr := c.IsServing(u.ctx)
	u.got("Client.Reconnect", ok && serr == nil, err)
	err = c.Close()
	_, verr := c.Version(u.ctx)
	u.got("Client.Close", verr != nil, err)
}
