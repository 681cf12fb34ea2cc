package api_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/faketask"
	"github.com/berthd/berth/internal/storage"
)

// A target for each service: any bytes, as the request of any of its unary
// methods, are answered, and never by a panic. What would mount or reach out is
// replaced.

func FuzzContainers(f *testing.F) { fuzzService(f, "containerd.services.containers.v1.Containers") }
func FuzzContent(f *testing.F)    { fuzzService(f, "containerd.services.content.v1.Content") }
func FuzzDiff(f *testing.F)       { fuzzService(f, "containerd.services.diff.v1.Diff") }
func FuzzEvents(f *testing.F)     { fuzzService(f, "containerd.services.events.v1.Events") }
func FuzzImages(f *testing.F)     { fuzzService(f, "containerd.services.images.v1.Images") }
func FuzzIntrospection(f *testing.F) {
	fuzzService(f, "containerd.services.introspection.v1.Introspection")
}
func FuzzLeases(f *testing.F)       { fuzzService(f, "containerd.services.leases.v1.Leases") }
func FuzzMounts(f *testing.F)       { fuzzService(f, "containerd.services.mounts.v1.Mounts") }
func FuzzNamespaces(f *testing.F)   { fuzzService(f, "containerd.services.namespaces.v1.Namespaces") }
func FuzzSandboxStore(f *testing.F) { fuzzService(f, "containerd.services.sandbox.v1.Store") }
func FuzzSandboxes(f *testing.F)    { fuzzService(f, "containerd.services.sandbox.v1.Controller") }
func FuzzSnapshots(f *testing.F)    { fuzzService(f, "containerd.services.snapshots.v1.Snapshots") }
func FuzzTasks(f *testing.F)        { fuzzService(f, "containerd.services.tasks.v1.Tasks") }
func FuzzTransfer(f *testing.F)     { fuzzService(f, "containerd.services.transfer.v1.Transfer") }
func FuzzVersion(f *testing.F)      { fuzzService(f, "containerd.services.version.v1.Version") }

func fuzzService(f *testing.F, name string) {
	direct := fuzzedServices(f)
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		f.Fatal(err)
	}
	service, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		f.Fatalf("%s is no service", name)
	}
	methods := service.Methods()
	// Empty, a string and a message in each of the first fields, a filter.
	for i := range methods.Len() {
		for _, seed := range []string{"", "\x0a\x01x\x12\x01y\x1a\x01z", "\x0a\x00\x12\x00\x1a\x00\x22\x00", "\x0a\x04\x0a\x02id", "\x0a\x07id==~\"["} {
			f.Add(uint8(i), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		m := methods.Get(int(method) % methods.Len())
		if m.IsStreamingClient() || m.IsStreamingServer() {
			return
		}
		request, answer := newMessage(t, m.Input()), newMessage(t, m.Output())
		if proto.Unmarshal(data, request) != nil {
			return // the transport refuses it
		}
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "fuzz"), 10*time.Second)
		defer cancel()
		err := direct.Invoke(ctx, "/"+name+"/"+string(m.Name()), request, answer)
		if code := status.Code(err); code == codes.Internal || code == codes.DeadlineExceeded {
			t.Errorf("%s of %v: %v", m.Name(), request, err)
		} else if err != nil && strings.Contains(status.Convert(err).Message(), "\n") {
			t.Errorf("%s of %v: an error of several lines: %q", m.Name(), request, err)
		}
	})
}

func newMessage(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

// fuzzedServices are the real services on a store of their own.
func fuzzedServices(f *testing.F) *api.Direct {
	f.Helper()
	dir := f.TempDir()
	ex := exchange.NewExchange()
	store, err := storage.Open(f.Context(), storage.Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Publisher: ex, Snapshotter: storage.Native,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := store.Close(); err != nil {
			f.Error(err)
		}
	})
	about, err := api.NewIntrospection(api.IntrospectionConfig{Dir: dir, Parts: store.Descriptors()})
	if err != nil {
		f.Fatal(err)
	}
	return api.NewDirect(api.Services{
		Containers: api.NewContainers(store.Containers, ex), Content: api.NewContent(store.Content),
		Diff:   api.NewDiff(storage.Differ{Applier: refusing{}, Comparer: refusing{}}),
		Events: api.NewEvents(ex), Images: api.NewImages(store.Images, store.GC),
		Introspection: api.NewIntrospectionServer(about), Leases: api.NewLeases(store.Leases), Mounts: api.NewMounts(refusing{}),
		Namespaces: api.NewNamespaces(store.Namespaces, ex), Sandboxes: api.NewSandboxStore(store.Sandboxes),
		Sandboxers: api.NewSandboxControllers(nil, ex), Snapshots: api.NewSnapshots(store), Streaming: api.NewStreaming(store.Streams),
		Tasks: api.NewTasks(api.TasksConfig{
			Runner: &faketask.Runner{}, Containers: store.Containers, Content: store.Content, TempDir: filepath.Join(dir, "tmp"),
		}),
		Transfer: api.NewTransfer(api.TransferConfig{Transferrer: refusing{}, Streams: store.Streams, HostDir: dir}),
		Version:  api.NewVersion("1", "2"),
	}, slog.New(slog.DiscardHandler))
}

// refusing does nothing.
type refusing struct{}

var errRefused = errdefs.ErrUnavailable

func (refusing) Transfer(context.Context, any, any, ...transfer.Opt) error { return errRefused }

func (refusing) Apply(context.Context, ocispec.Descriptor, []mount.Mount, ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errRefused
}

func (refusing) Compare(context.Context, []mount.Mount, []mount.Mount, ...diff.Opt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errRefused
}

func (refusing) Activate(context.Context, string, []mount.Mount, ...mount.ActivateOpt) (mount.ActivationInfo, error) {
	return mount.ActivationInfo{}, errRefused
}
func (refusing) Deactivate(context.Context, string) error { return errRefused }
func (refusing) Info(context.Context, string) (mount.ActivationInfo, error) {
	return mount.ActivationInfo{}, errRefused
}

func (refusing) Update(_ context.Context, info mount.ActivationInfo, _ ...string) (mount.ActivationInfo, error) {
	return info, nil
}

func (refusing) List(context.Context, ...string) ([]mount.ActivationInfo, error) {
	return nil, errRefused
}
