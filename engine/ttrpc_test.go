package engine

import (
	"net"
	"testing"

	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// forwardOverTTRPC sends an event as a shim does.
func forwardOverTTRPC(t *testing.T, address, ns, topic string, payload typeurl.Any) {
	t.Helper()
	conn, err := net.Dial("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	defer func() { _ = c.Close() }()
	_, err = ttrpcevents.NewTTRPCEventsClient(c).Forward(testContext(t), &ttrpcevents.ForwardRequest{Envelope: &types.Envelope{
		Namespace: ns, Topic: topic, Timestamp: timestamppb.Now(), Event: typeurl.MarshalProto(payload),
	}})
	if err != nil {
		t.Fatal(err)
	}
}
