package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a unix socket.
const maxSocketPath = 107

// address is where a shim listens: a unix socket, and for a hybrid vsock the
// port to ask for behind it.
type address struct {
	socket string // "\x00name" for an abstract socket
	port   string // "" but for a hybrid vsock
}

// parseAddress reads "unix://PATH", "hvsock://PATH:PORT", and what has no
// scheme: an abstract unix socket with ttrpc, a path with gRPC.
func parseAddress(protocol, s string) (address, error) {
	var a address
	scheme, rest, hasScheme := strings.Cut(s, "://")
	switch {
	case !hasScheme && protocol == protocolGRPC:
		a.socket = strings.TrimPrefix(s, "unix:")
	case !hasScheme && s != "":
		a.socket = "\x00" + s
	case scheme == "unix":
		a.socket = rest
	case scheme == "hvsock":
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			return a, badAddress(s)
		}
		a.socket, a.port = rest[:i], rest[i+1:]
		if _, err := strconv.ParseUint(a.port, 10, 32); err != nil {
			return a, badAddress(s)
		}
	case hasScheme:
		return a, fmt.Errorf("address of the shim %.200q: scheme %.20q is not known: %w", s, scheme, errdefs.ErrNotImplemented)
	}
	if a.socket == "" || len(a.socket) > maxSocketPath || strings.ContainsAny(a.socket[1:], "\x00\n") {
		return a, badAddress(s)
	}
	if a.socket[0] != 0 && a.socket[0] != '/' {
		return a, badAddress(s)
	}
	return a, nil
}

func badAddress(s string) error {
	return fmt.Errorf("shim gave the address %.200q, which is not one: %w", s, errdefs.ErrUnavailable)
}

func (a address) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", a.socket)
	if err != nil || a.port == "" {
		return c, err
	}
	if err := askPort(ctx, c, a.port); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// askPort is the handshake of a hybrid vsock. The answer is read byte by byte:
// what follows it belongs to the protocol above.
func askPort(ctx context.Context, c net.Conn, port string) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "CONNECT %s\n", port); err != nil {
		return err
	}
	answer, err := bufio.NewReaderSize(oneByte{c}, 64).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("vsock port %s: %w", port, err)
	}
	if !strings.HasPrefix(string(answer), "OK") {
		return fmt.Errorf("vsock port %s: answered %q: %w", port, answer, errdefs.ErrUnavailable)
	}
	return c.SetDeadline(time.Time{})
}

type oneByte struct{ net.Conn }

func (r oneByte) Read(p []byte) (int, error) { return r.Conn.Read(p[:min(1, len(p))]) }

// nobodyListens says that a failed dial proves that no process has the socket
// open. A full backlog or a timeout proves nothing.
func nobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}
