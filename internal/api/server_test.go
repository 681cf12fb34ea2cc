package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/internal/api"
	"github.com/berthd/berth/internal/events"
	"github.com/berthd/berth/internal/storage"
)

const patience = 10 * time.Second

// slowTasks is a task service whose calls wait for the test.
type slowTasks struct {
	tasksapi.UnimplementedTasksServer
	entered chan string
	release chan struct{}
}

func (s *slowTasks) Start(ctx context.Context, _ *tasksapi.StartRequest) (*tasksapi.StartResponse, error) {
	ns, _ := namespaces.Namespace(ctx)
	s.entered <- ns
	select {
	case <-s.release:
		return &tasksapi.StartResponse{Pid: 7}, nil
	case <-ctx.Done():
		return nil, errgrpc.ToGRPC(ctx.Err())
	}
}

func (s *slowTasks) Wait(ctx context.Context, _ *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	s.entered <- "wait"
	<-ctx.Done()
	return nil, errgrpc.ToGRPC(ctx.Err())
}

func (s *slowTasks) Resume(context.Context, *tasksapi.ResumeTaskRequest) (*emptypb.Empty, error) {
	cause := errors.Join(errors.New("no such file"), errdefs.ErrNotFound, errors.New("tried twice\n"))
	return nil, errgrpc.ToGRPC(fmt.Errorf("resume c: %w: %w", cause, errdefs.ErrInvalidArgument))
}

func (s *slowTasks) Pause(context.Context, *tasksapi.PauseTaskRequest) (*emptypb.Empty, error) {
	panic("out of cheese")
}

type emptyServices struct {
	containersapi.UnimplementedContainersServer
	contentapi.UnimplementedContentServer
	diffapi.UnimplementedDiffServer
	imagesapi.UnimplementedImagesServer
	leasesapi.UnimplementedLeasesServer
	mountsapi.UnimplementedMountsServer
	namespacesapi.UnimplementedNamespacesServer
	sandboxapi.UnimplementedStoreServer
	sandboxapi.UnimplementedControllerServer
	snapshotsapi.UnimplementedSnapshotsServer
	streamingapi.UnimplementedStreamingServer
	transferapi.UnimplementedTransferServer
}

func newServices(t *testing.T, tasks tasksapi.TasksServer, x *events.Exchange, about *api.Introspection) api.Services {
	t.Helper()
	var none emptyServices
	return api.Services{
		Containers: &none.UnimplementedContainersServer, Content: &none.UnimplementedContentServer,
		Diff: &none.UnimplementedDiffServer, Images: &none.UnimplementedImagesServer,
		Leases: &none.UnimplementedLeasesServer, Mounts: &none.UnimplementedMountsServer,
		Namespaces: &none.UnimplementedNamespacesServer, Sandboxes: &none.UnimplementedStoreServer,
		Sandboxers: &none.UnimplementedControllerServer,
		Snapshots:  &none.UnimplementedSnapshotsServer, Streaming: &none.UnimplementedStreamingServer,
		Transfer: &none.UnimplementedTransferServer,
		Tasks:    tasks, Events: api.NewEvents(x), Introspection: api.NewIntrospectionServer(about),
		Version: api.NewVersion("1.2.3", "abc"),
	}
}

// serverBench is a server on a socket with a client.
type serverBench struct {
	server   *api.Server
	direct   *api.Direct
	client   *client.Client
	exchange *events.Exchange
	tasks    *slowTasks
	log      *strings.Builder
	served   chan error
	socket   string
}

func newServerBench(t *testing.T) *serverBench {
	t.Helper()
	dir := t.TempDir()
	about, err := api.NewIntrospection(api.IntrospectionConfig{
		Dir: filepath.Join(dir, "about"),
		Parts: append(api.Parts("/the/root"), storage.Descriptor{
			Type: "io.containerd.snapshotter.v1", ID: "broken", InitErr: errdefs.ErrFailedPrecondition,
		}),
		Runtime: func(_ context.Context, r *types.RuntimeRequest) (*types.RuntimeInfo, error) {
			return &types.RuntimeInfo{Name: r.RuntimePath}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &serverBench{
		exchange: events.NewExchange(events.Config{}),
		tasks:    &slowTasks{entered: make(chan string, 4), release: make(chan struct{})},
		log:      &strings.Builder{},
		served:   make(chan error, 1),
	}
	log := slog.New(slog.NewTextHandler(b.log, nil))
	services := newServices(t, b.tasks, b.exchange, about)
	b.server, b.direct = api.NewServer(services, log), api.NewDirect(services, log)
	b.socket = filepath.Join(dir, "s")
	l, err := api.Listen(api.SocketConfig{Path: b.socket})
	if err != nil {
		t.Fatal(err)
	}
	go func() { b.served <- b.server.Serve(l) }()
	if b.client, err = client.New(b.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.exchange.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.server.Stop(ctx)
		if err := errors.Join(b.client.Close(), <-b.served); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *serverBench) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "blue"), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestServerAboutItself(t *testing.T) {
	b := newServerBench(t)
	ctx := b.ctx(t)
	v, err := b.client.Version(ctx)
	if err != nil || v.Version != "1.2.3" || v.Revision != "abc" {
		t.Errorf("version is %v, %v", v, err)
	}
	if ok, err := b.client.IsServing(ctx); !ok || err != nil {
		t.Errorf("serving: %v, %v", ok, err)
	}
	in := b.client.IntrospectionService()
	first, err := in.Server(ctx)
	if err != nil || len(first.UUID) != 36 || first.Pid != uint64(os.Getpid()) || first.Pidns == 0 {
		t.Errorf("server is %v, %v", first, err)
	}
	plugins, err := in.Plugins(ctx, "type==io.containerd.runtime.v2", "id==broken")
	if err != nil || len(plugins.Plugins) != 2 {
		t.Fatalf("plugins are %v, %v", plugins, err)
	}
	rt := plugins.Plugins[0]
	if rt.ID != "task" || len(rt.Platforms) == 0 || rt.Exports["root"] != "/the/root" || rt.Exports["log-uri-schemes"] != "fifo,binary,binary-v2,file,json-file" {
		t.Errorf("runtime plugin is %v", rt)
	}
	if e := plugins.Plugins[1].InitErr; e == nil || codes.Code(e.Code) != codes.FailedPrecondition {
		t.Errorf("broken plugin says %v", e)
	}
	_, err = in.Plugins(ctx, `id=="`)
	wantClass(t, "bad plugin filter", err, errdefs.ErrInvalidArgument)

	info, err := b.client.RuntimeInfo(ctx, "/bin/shim", nil)
	if err != nil || info.Name != "/bin/shim" {
		t.Errorf("runtime info is %v, %v", info, err)
	}
	_, err = in.PluginInfo(ctx, "no.such.type", "x", nil)
	wantClass(t, "info of an unknown plugin", err, errdefs.ErrNotFound)
	_, err = in.PluginInfo(ctx, "io.containerd.event.v1", "exchange", &types.RuntimeRequest{})
	wantClass(t, "info of a plugin that gives none", err, errdefs.ErrNotImplemented)
	_, err = in.PluginInfo(ctx, "io.containerd.runtime.v2", "task", &types.Metric{})
	wantClass(t, "info with other options", err, errdefs.ErrInvalidArgument)
}

func TestUUIDStays(t *testing.T) {
	dir := t.TempDir()
	uuid := func() string {
		t.Helper()
		about, err := api.NewIntrospection(api.IntrospectionConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		s, err := about.Server(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.UUID
	}
	first := uuid()
	if again := uuid(); again != first {
		t.Errorf("uuid changes from %s to %s", first, again)
	}
	if err := os.WriteFile(filepath.Join(dir, "uuid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if fresh := uuid(); fresh == first || len(fresh) != 36 {
		t.Errorf("an empty file gives %q", fresh)
	}
}

func TestEventsOverGRPC(t *testing.T) {
	b := newServerBench(t)
	ctx := b.ctx(t)
	ch, errs := b.client.Subscribe(ctx, `topic=="/tasks/start"`)
	// The subscription begins on the server some time after the call: publish
	// until the first event is seen.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for seen := false; !seen; {
		select {
		case env := <-ch:
			seen = true
			if env.Namespace != "blue" || env.Topic != "/tasks/start" || env.Timestamp.IsZero() {
				t.Errorf("event is %v", env)
			}
		case err := <-errs:
			t.Fatalf("subscription ended: %v", err)
		case <-tick.C:
			if err := b.client.EventService().Publish(ctx, "/tasks/start", &eventsapi.TaskStart{ContainerID: "c"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := b.client.EventService().Publish(ctx, "no-slash", &eventsapi.TaskStart{})
	wantClass(t, "publish with a bad topic", err, errdefs.ErrInvalidArgument)
	b.exchange.Close()
	for {
		select {
		case <-ch:
			continue
		case err := <-errs:
			wantClass(t, "subscription to a closed exchange", err, errdefs.ErrUnavailable)
		}
		break
	}
	_, errs = b.client.Subscribe(ctx, `topic=="`)
	wantClass(t, "bad filter", <-errs, errdefs.ErrInvalidArgument)
}

func TestShimEventsOverTTRPC(t *testing.T) {
	x := events.NewExchange(events.Config{})
	defer x.Close()
	once, err := events.OpenOnce(filepath.Join(t.TempDir(), "forwarded"), x, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer once.Close()
	srv, err := api.NewTTRPCServer(api.NewShimEvents(once), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "t")
	l, err := api.Listen(api.SocketConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	defer func() {
		if err := srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		<-served
	}()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	defer func() { _ = c.Close() }()
	shim := ttrpcevents.NewTTRPCEventsClient(c)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ch, errs := x.Subscribe(ctx)
	payload, err := typeurl.MarshalAnyToProto(&eventsapi.TaskExit{ContainerID: "c", ExitStatus: 42})
	if err != nil {
		t.Fatal(err)
	}
	at := timestamppb.New(time.Unix(1700000000, 0))
	env := &types.Envelope{Namespace: "red", Topic: "/tasks/exit", Timestamp: at, Event: payload}
	if _, err := shim.Forward(ctx, &ttrpcevents.ForwardRequest{Envelope: env}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-ch:
		if got.Namespace != "red" || got.Topic != "/tasks/exit" || !got.Timestamp.Equal(at.AsTime()) || string(got.Event.GetValue()) != string(payload.Value) {
			t.Errorf("event is %v", got)
		}
	case err := <-errs:
		t.Fatal(err)
	}
	// A successor of that shim, which does not know that we have it.
	if _, err := shim.Forward(ctx, &ttrpcevents.ForwardRequest{Envelope: env}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-ch:
		t.Errorf("the event came again: %v", got)
	default:
	}
	for name, bad := range map[string]*types.Envelope{
		"nothing":         nil,
		"no event":        {Namespace: "red", Topic: "/a", Timestamp: at},
		"no time":         {Namespace: "red", Topic: "/a", Event: payload},
		"no namespace":    {Topic: "/a", Timestamp: at, Event: payload},
		"traversal in it": {Namespace: "../red", Topic: "/a", Timestamp: at, Event: payload},
	} {
		_, err := shim.Forward(ctx, &ttrpcevents.ForwardRequest{Envelope: bad})
		wantClass(t, "forward of "+name, err, errdefs.ErrInvalidArgument)
	}
}

func TestPanicsBecomeInternalErrors(t *testing.T) {
	b := newServerBench(t)
	ctx := b.ctx(t)
	for name, tasks := range map[string]tasksapi.TasksClient{"socket": b.client.TaskService(), "direct": tasksapi.NewTasksClient(b.direct)} {
		_, err := tasks.Pause(ctx, &tasksapi.PauseTaskRequest{})
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "cheese") {
			t.Errorf("%s: a panic gives %v", name, err)
		}
	}
	if n := strings.Count(b.log.String(), "out of cheese"); n != 2 {
		t.Errorf("the log has %d panics: %s", n, b.log)
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	b := newServerBench(t)
	_, err := b.client.TaskService().Resume(b.ctx(t), &tasksapi.ResumeTaskRequest{})
	native := errgrpc.ToNative(err)
	if got, want := native.Error(), "resume c: no such file; tried twice; invalid argument"; got != want || !errdefs.IsNotFound(native) {
		t.Errorf("error is %q, want %q", got, want)
	}
}

func TestDirectCalls(t *testing.T) {
	b := newServerBench(t)
	tasks := tasksapi.NewTasksClient(b.direct)
	close(b.tasks.release)
	resp, err := tasks.Start(b.ctx(t), &tasksapi.StartRequest{})
	if err != nil || resp.Pid != 7 || <-b.tasks.entered != "blue" {
		t.Errorf("direct call gives %v, %v", resp, err)
	}
	if _, err := tasks.Kill(b.ctx(t), &tasksapi.KillRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("unimplemented method gives %v", err)
	}
	if err := b.direct.Invoke(b.ctx(t), "/no.such/Method", nil, nil); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method gives %v", err)
	}
	ctx, cancel := context.WithCancel(b.ctx(t))
	cancel()
	if _, err := tasks.Start(ctx, &tasksapi.StartRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled call gives %v", err)
	}
	stream, err := containersapi.NewContainersClient(b.direct).ListStream(b.ctx(t), &containersapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("stream gives %v", err)
	}
}

func TestStopWaitsForCallsButNotForWaits(t *testing.T) {
	b := newServerBench(t)
	ctx := b.ctx(t)
	started, waited, stopped := make(chan error, 1), make(chan error, 1), make(chan struct{})
	go func() {
		_, err := b.client.TaskService().Wait(ctx, &tasksapi.WaitRequest{})
		waited <- err
	}()
	if got := <-b.tasks.entered; got != "wait" {
		t.Fatal(got)
	}
	go func() {
		_, err := b.client.TaskService().Start(ctx, &tasksapi.StartRequest{})
		started <- err
	}()
	if ns := <-b.tasks.entered; ns != "blue" {
		t.Errorf("namespace of the call is %q", ns)
	}
	go func() {
		b.server.Stop(ctx)
		close(stopped)
	}()
	// Nobody new gets in as soon as the stop has begun.
	for deadline := time.Now().Add(patience); ; {
		conn, err := net.Dial("unix", b.socket)
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("a stopping server listens")
		}
	}
	select {
	case <-stopped:
		t.Error("the server has stopped with a call in progress")
	default:
	}
	close(b.tasks.release)
	if err := <-started; err != nil {
		t.Errorf("the call in progress ends with %v", err)
	}
	<-stopped
	if err := <-waited; status.Code(err) != codes.Unavailable {
		t.Errorf("the wait ends with %v, want Unavailable", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "s")
	l, err := api.Listen(api.SocketConfig{Path: path, UID: 12, GID: 34})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm() != 0o660 || st.Uid != 12 || st.Gid != 34 || l.Addr().String() != path {
		t.Errorf("socket %s is %s, owned by %d:%d", l.Addr(), info.Mode(), st.Uid, st.Gid)
	}
	_, err = api.Listen(api.SocketConfig{Path: path})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "serves this address") {
		t.Errorf("a second listener gives %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
		t.Errorf("a closed listener leaves %v, %v", entries, err)
	}

	// A socket that a killed daemon left.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := api.Listen(api.SocketConfig{Path: path})
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	// What another has put in its place is not removed.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's file was removed: %v", err)
	}
	if _, err := api.Listen(api.SocketConfig{Path: path}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a file that is no socket gives %v", err)
	}
	for _, bad := range []string{"relative", "/" + strings.Repeat("x", 105)} {
		if _, err := api.Listen(api.SocketConfig{Path: bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("path %s gives %v", bad, err)
		}
	}
}
