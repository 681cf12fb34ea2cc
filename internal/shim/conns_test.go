package shim

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/faketask"
)

func frame(kind byte, size int) []byte {
	f := make([]byte, headSize+size)
	binary.BigEndian.PutUint32(f, uint32(size))
	f[kindAt] = kind
	return f
}

// Frames are counted when they are whole, however the bytes come.
func TestFrames(t *testing.T) {
	var stream []byte
	for _, f := range [][]byte{frame(1, 0), frame(2, 3), frame(1, 300), frame(3, 0), frame(1, 1), frame(2, 0)} {
		stream = append(stream, f...)
	}
	for chunk := 1; chunk <= len(stream); chunk++ {
		for kind, want := range map[byte]int64{1: 3, 2: 2, 3: 1, 4: 0} {
			f := frames{kind: kind}
			for rest := stream; len(rest) > 0; {
				n := min(chunk, len(rest))
				f.add(rest[:n])
				rest = rest[n:]
			}
			if got := f.n.Load(); got != want {
				t.Fatalf("%d frames of kind %d in chunks of %d, want %d", got, kind, chunk, want)
			}
		}
	}
	f := frames{kind: 1}
	f.add(frame(1, 5)[:headSize+4])
	if f.n.Load() != 0 {
		t.Error("a part of a frame counts")
	}
}

// A request is entered when its reader has come back for more.
func TestEntered(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	conns := &connections{open: map[*conn]struct{}{}}
	c := &conn{Conn: near, owner: conns, requests: frames{kind: requestFrame}, responses: frames{kind: responseFrame}}
	conns.open[c] = struct{}{}
	ended := make(chan error, 1)
	buf := make([]byte, headSize+8)
	read := func() { _, err := io.ReadFull(c, buf); ended <- err }
	go read()
	request := frame(requestFrame, 8)
	for _, part := range [][]byte{request[:5], request[5:]} {
		if _, err := far.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if conns.entered() {
		t.Error("a request is entered while its reader is busy with it")
	}
	go read()
	conns.awaitEntered()
	if !conns.entered() {
		t.Error("a request is not entered though its reader waits for more")
	}
	c.Close()
	if err := <-ended; err == nil {
		t.Error("read of a closed connection")
	}
}

// Whoever asks for the end gets an answer before it.
func TestAnswersBeforeTheEnd(t *testing.T) {
	for range 200 {
		conns := &connections{check: ttrpc.UnixSocketRequireSameUser()}
		srv := newServer(t, ttrpc.WithServerHandshaker(conns))
		ended := make(chan error, 1)
		(&service{runner: &faketask.Runner{}, namespace: "ns", shutdown: func() {
			go func() {
				ctx := timeout(t)
				ended <- errors.Join(conns.drain(ctx), srv.Shutdown(ctx))
			}()
		}}).register(srv)
		path := filepath.Join(socketDir(t), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- srv.Serve(context.Background(), l) }()
		c := &client{t, dial(t, path), versions[0]}
		if err := c.call("Shutdown", &taskAPI.ShutdownRequest{}, &emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		c.rpc.Close()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Fatal(err)
		}
	}
}

// A call that goes on holds the end up for as long as it is told, no longer.
func TestDrainIsBounded(t *testing.T) {
	conns := &connections{check: ttrpc.UnixSocketRequireSameUser()}
	srv := newServer(t, ttrpc.WithServerHandshaker(conns))
	(&service{runner: &faketask.Runner{}, namespace: "ns"}).register(srv)
	path := filepath.Join(socketDir(t), "s")
	serveRPC(t, path, srv)
	c := &client{t, dial(t, path), versions[0]}
	c.must("Create", &taskAPI.CreateTaskRequest{ID: "c"}, &taskAPI.CreateTaskResponse{})
	waited := make(chan error, 1)
	go func() { waited <- c.call("Wait", &taskAPI.WaitRequest{ID: "c"}, &taskAPI.WaitResponse{}) }()
	await(t, "the wait", func() bool { _, n := conns.count(); return n == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := conns.drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	c.must("Kill", &taskAPI.KillRequest{ID: "c", Signal: 9}, &emptypb.Empty{})
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := conns.drain(timeout(t)); err != nil {
		t.Error(err)
	}
}
