package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/containerd/containerd/api/services/containers/v1"
	_ "github.com/containerd/containerd/api/services/content/v1"
	_ "github.com/containerd/containerd/api/services/diff/v1"
	_ "github.com/containerd/containerd/api/services/events/v1"
	_ "github.com/containerd/containerd/api/services/images/v1"
	_ "github.com/containerd/containerd/api/services/introspection/v1"
	_ "github.com/containerd/containerd/api/services/leases/v1"
	_ "github.com/containerd/containerd/api/services/mounts/v1"
	_ "github.com/containerd/containerd/api/services/namespaces/v1"
	_ "github.com/containerd/containerd/api/services/sandbox/v1"
	_ "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/api/services/streaming/v1"
	_ "github.com/containerd/containerd/api/services/tasks/v1"
	_ "github.com/containerd/containerd/api/services/transfer/v1"
	_ "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/berthd/berth/test/harness"
)

// request is a way to call a method wrongly.
type request struct {
	name      string
	namespace string // "-" for none
	text      string // in every string
	label     string // a key of every map
	filter    string // in every list of strings
}

var requests = []request{
	{name: "empty"},
	{name: "empty, without a namespace", namespace: "-"},
	{name: "empty, in a namespace that is no identifier", namespace: "../no"},
	{name: "unknown names", text: "no-such"},
	{name: "unknown names, without a namespace", text: "no-such", namespace: "-"},
	{name: "names that are no identifiers", text: "../no/such name"},
	{name: "names of 200 bytes", text: strings.Repeat("n", 200)},
	{name: "a label that is too long", text: "no-such", label: strings.Repeat("l", 5000)},
	{name: "a filter that is none", text: "no-such", filter: "==nothing=="},
}

// classDifferences are the calls that Berth answers with another class than
// stock, and why. One that vanishes fails the test.
var classDifferences = map[string]string{
	"containerd.services.tasks.v1.Tasks/List: a filter that is none":                        "a filter selects; stock does not look at it",
	"containerd.services.tasks.v1.Tasks/List: a label that is too long":                     "a filter selects; stock does not look at it",
	"containerd.services.tasks.v1.Tasks/List: names that are no identifiers":                "a filter selects; stock does not look at it",
	"containerd.services.tasks.v1.Tasks/List: unknown names":                                "a filter selects; stock does not look at it",
	"containerd.services.transfer.v1.Transfer/Transfer: unknown names, without a namespace": "the stream for the progress is looked for first",
}

// died is the answer of a daemon that a request has ended.
const died = "the daemon died"

// Every method answers every wrong request with the class that stock answers,
// and the daemon survives it, which stock does not always do.
func TestErrorClasses(t *testing.T) {
	t.Parallel()
	answers := make(map[harness.Kind]map[string]string)
	for _, kind := range []harness.Kind{harness.Stock, harness.Berth} {
		t.Run(string(kind), func(t *testing.T) {
			// Some requests do what they say: create a lease, for example.
			d := harness.Start(t, harness.Config{Kind: kind, NoImage: true, NoLeakCheck: true})
			answers[kind] = askAll(t, d)
		})
	}
	stock, ours := answers[harness.Stock], answers[harness.Berth]
	if len(stock) < 500 || len(stock) != len(ours) {
		t.Fatalf("%d calls of stock, %d of Berth", len(stock), len(ours))
	}
	found := make(map[string]bool)
	for _, call := range slices.Sorted(maps.Keys(stock)) {
		want, got := stock[call], ours[call]
		if got == died || got == codes.Internal.String() {
			t.Errorf("%s: %s", call, got)
		}
		// A failure to which stock gives no class may have one, and what stock does
		// not serve may be served.
		if got == want || want == codes.Unimplemented.String() || got != codes.OK.String() && (want == codes.Unknown.String() || want == died) {
			continue
		}
		found[call] = true
		if classDifferences[call] == "" {
			t.Errorf("%s: %s, stock answers %s", call, got, want)
		}
	}
	for call := range classDifferences {
		if !found[call] {
			t.Errorf("%s: is as with stock now; take it off the list", call)
		}
	}
}

// askAll sends every request to every method and returns the classes.
func askAll(t *testing.T, d *harness.Daemon) map[string]string {
	t.Helper()
	answers := make(map[string]string)
	conn := connect(t, d)
	for _, service := range services() {
		for j := range service.Methods().Len() {
			m := service.Methods().Get(j)
			for _, r := range requests {
				if m.Name() == "Subscribe" && r.filter == "" {
					continue // it would wait for events
				}
				code := ask(conn, d.Namespace, m, r)
				answers[fmt.Sprintf("%s/%s: %s", service.FullName(), m.Name(), r.name)] = code.String()
				if code == codes.Unavailable && harness.Poll(5*time.Second, func() bool { return harness.Ended(d.PID()) }) {
					answers[fmt.Sprintf("%s/%s: %s", service.FullName(), m.Name(), r.name)] = died
					d.Boot(t)
					conn = connect(t, d)
				}
			}
		}
	}
	return answers
}

// services are those of the daemon, in an order that is always the same: some
// requests change what later ones find.
func services() (list []protoreflect.ServiceDescriptor) {
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			name := string(f.Services().Get(i).FullName())
			if strings.HasPrefix(name, "containerd.services.") && !strings.Contains(name, "ttrpc") {
				list = append(list, f.Services().Get(i))
			}
		}
		return true
	})
	slices.SortFunc(list, func(a, b protoreflect.ServiceDescriptor) int {
		return strings.Compare(string(a.FullName()), string(b.FullName()))
	})
	return list
}

// connect makes a connection that adds no namespace.
func connect(t *testing.T, d *harness.Daemon) grpc.ClientConnInterface {
	t.Helper()
	c, err := client.New(d.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the daemon may have gone
	conn, ok := c.Conn().(grpc.ClientConnInterface)
	if !ok {
		t.Fatal("not a gRPC connection")
	}
	return conn
}

// ask calls a method; a stream is read until its first answer.
func ask(conn grpc.ClientConnInterface, namespace string, m protoreflect.MethodDescriptor, r request) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch r.namespace {
	case "":
		ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
	case "-":
	default:
		ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", r.namespace)
	}
	message, answer := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	fill(message, r, 3)
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	if !m.IsStreamingServer() && !m.IsStreamingClient() {
		return status.Code(conn.Invoke(ctx, path, message, answer))
	}
	desc := &grpc.StreamDesc{ServerStreams: m.IsStreamingServer(), ClientStreams: m.IsStreamingClient()}
	return status.Code(askStream(ctx, conn, desc, path, message, answer))
}

func askStream(ctx context.Context, conn grpc.ClientConnInterface, desc *grpc.StreamDesc, path string, message, answer proto.Message) error {
	stream, err := conn.NewStream(ctx, desc, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(message); err != nil && !errors.Is(err, io.EOF) {
		return err // EOF: the answer says why
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	err = stream.RecvMsg(answer)
	for first := err; first == nil && strings.HasSuffix(path, "/Write"); {
		// Until the server has let go of the reference.
		first = stream.RecvMsg(dynamicpb.NewMessage(answer.ProtoReflect().Descriptor()))
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// fill sets what the request says, in messages within the message too.
func fill(m protoreflect.Message, r request, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			if r.label != "" && f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(r.label).MapKey(), protoreflect.ValueOfString("v"))
			}
		case f.IsList():
			if r.filter != "" && f.Kind() == protoreflect.StringKind {
				m.Mutable(f).List().Append(protoreflect.ValueOfString(r.filter))
			}
		case f.Kind() == protoreflect.StringKind && r.text != "":
			m.Set(f, protoreflect.ValueOfString(r.text))
		case f.Kind() == protoreflect.MessageKind && r.text != "" && f.Message().FullName() == "google.protobuf.Any":
			m.Mutable(f).Message().Set(f.Message().Fields().ByName("type_url"), protoreflect.ValueOfString("no-such/type"))
		case f.Kind() == protoreflect.MessageKind && r.text != "" && depth > 0 && !strings.HasPrefix(string(f.Message().FullName()), "google.protobuf."):
			fill(m.Mutable(f).Message(), r, depth-1)
		}
	}
}
