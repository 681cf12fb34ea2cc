package api_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
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
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/faketask"
	"github.com/berthd/berth/internal/storage"
)

// A target for each service: any bytes, as the request of any of its methods, or
// the first one of a stream, are answered, and never by a panic. What would mount
// or reach out is replaced.

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
func FuzzStreaming(f *testing.F)    { fuzzService(f, "containerd.services.streaming.v1.Streaming") }
func FuzzTasks(f *testing.F)        { fuzzService(f, "containerd.services.tasks.v1.Tasks") }
func FuzzTransfer(f *testing.F)     { fuzzService(f, "containerd.services.transfer.v1.Transfer") }
func FuzzVersion(f *testing.F)      { fuzzService(f, "containerd.services.version.v1.Version") }

// No service is without a target.
func TestFuzzTargets(t *testing.T) {
	source, err := os.ReadFile("fuzz_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if have, want := strings.Count(string(source), "\nfunc Fuzz"), reflect.TypeFor[api.Services]().NumField(); have != want {
		t.Errorf("%d targets, %d services", have, want)
	}
}

func fuzzService(f *testing.F, name string) {
	conn := serveFuzzed(f)
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		f.Fatal(err)
	}
	service, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		f.Fatalf("%s is no service", name)
	}
	methods := service.Methods()
	// Empty, a string and a message in each of the first fields, a filter, and
	// what opens a stream, with a name and with one that is cut.
	for i := range methods.Len() {
		for _, seed := range []string{
			"", "\x0a\x01x\x12\x01y\x1a\x01z", "\x0a\x00\x12\x00\x1a\x00\x22\x00", "\x0a\x04\x0a\x02id", "\x0a\x07id==~\"[",
			"\x0a\x20containerd.types.transfer.Progress\x12\x00",
			"\x0a\x2bcontainerd.services.streaming.v1.StreamInit\x12\x03\x0a\x01s",
			"\x0a\x2bcontainerd.services.streaming.v1.StreamInit\x12\x03\x0a\x09s",
		} {
			f.Add(uint8(i), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, data []byte) {
		m := methods.Get(int(method) % methods.Len())
		request, answer := newMessage(t, m.Input()), newMessage(t, m.Output())
		if proto.Unmarshal(data, request) != nil {
			return // the transport refuses it
		}
		limit := 10 * time.Second
		if m.Name() == "Subscribe" {
			limit = 20 * time.Millisecond // it waits for events, of which there are none
		}
		ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "fuzz"), limit)
		defer cancel()
		path := "/" + name + "/" + string(m.Name())
		var err error
		if m.IsStreamingClient() || m.IsStreamingServer() {
			err = firstAnswer(ctx, conn, path, request, answer)
		} else {
			err = conn.Invoke(ctx, path, request, answer)
		}
		if code := status.Code(err); code == codes.Internal || code == codes.DeadlineExceeded && m.Name() != "Subscribe" {
			t.Errorf("%s of %v: %v", m.Name(), request, err)
		} else if err != nil && strings.Contains(status.Convert(err).Message(), "\n") {
			t.Errorf("%s of %v: an error of several lines: %q", m.Name(), request, err)
		}
	})
}

// firstAnswer sends one request on a stream, and reads one answer.
func firstAnswer(ctx context.Context, conn grpc.ClientConnInterface, path string, request, answer proto.Message) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err // EOF: the answer says why
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(answer); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// serveFuzzed serves the services in memory.
func serveFuzzed(f *testing.F) *grpc.ClientConn {
	f.Helper()
	server := api.NewServer(fuzzedServices(f), slog.New(slog.DiscardHandler))
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:fuzz", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := conn.Close(); err != nil {
			f.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		server.Stop(ctx)
		if err := <-served; err != nil {
			f.Error(err)
		}
	})
	return conn
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
func fuzzedServices(f testing.TB) api.Services {
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
	return api.Services{
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
	}
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
