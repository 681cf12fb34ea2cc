package supervisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/internal/bundle"
)

const (
	protocolTTRPC = "ttrpc"
	protocolGRPC  = "grpc"
	// maxBootstrap bounds what a shim may print and what is read back.
	maxBootstrap = 1 << 20
)

// parseBootstrap reads what a shim's "start" printed: the protobuf message,
// the JSON of an earlier protocol, or the bare address of the earliest.
func parseBootstrap(out []byte) (*bootapi.BootstrapResult, error) {
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(out, &result); err == nil && len(out) > 0 {
		return checkBootstrap(&result)
	}
	return parseBootstrapText(out)
}

// parseBootstrapText reads the forms that are text; bootstrap.json is one.
func parseBootstrapText(out []byte) (*bootapi.BootstrapResult, error) {
	out = bytes.TrimSpace(out)
	if len(out) == 0 {
		return nil, fmt.Errorf("shim printed no address: %w", errdefs.ErrUnavailable)
	}
	var result bootapi.BootstrapResult
	if out[0] == '{' {
		if err := json.Unmarshal(out, &result); err != nil {
			return nil, fmt.Errorf("shim printed JSON that cannot be read (%w): %w", err, errdefs.ErrUnavailable)
		}
		return checkBootstrap(&result)
	}
	if bytes.ContainsFunc(out, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, badAddress(string(out))
	}
	return checkBootstrap(&bootapi.BootstrapResult{Version: 2, Address: string(out), Protocol: protocolTTRPC})
}

func checkBootstrap(r *bootapi.BootstrapResult) (*bootapi.BootstrapResult, error) {
	r.Protocol = strings.ToLower(r.Protocol)
	switch {
	case r.Version < 2 || r.Version > 3:
		return nil, fmt.Errorf("shim speaks protocol version %d; 2 and 3 are known: %w", r.Version, errdefs.ErrNotImplemented)
	case r.Protocol != protocolTTRPC && r.Protocol != protocolGRPC:
		return nil, fmt.Errorf("shim speaks %.40q; ttrpc and grpc are known: %w", r.Protocol, errdefs.ErrNotImplemented)
	case r.Protocol == protocolGRPC && r.Version != 3:
		return nil, fmt.Errorf("shim speaks version %d over gRPC; only 3 is known there: %w", r.Version, errdefs.ErrNotImplemented)
	}
	if _, err := parseAddress(r.Protocol, r.Address); err != nil {
		return nil, err
	}
	return r, nil
}

func writeBootstrap(b *bundle.Bundle, r *bootapi.BootstrapResult) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the address of the shim of %s: %w", b.ID, err)
	}
	return b.WriteFile(bundle.BootstrapFile, data, 0o644)
}

// readBootstrap reads back how to reach the shim of a bundle; NotFound when
// none was ever started. Shims before containerd 2 left a bare address.
func readBootstrap(b *bundle.Bundle) (*bootapi.BootstrapResult, error) {
	data, err := b.ReadFile(bundle.BootstrapFile, maxBootstrap)
	if errdefs.IsNotFound(err) {
		data, err = b.ReadFile("address", maxBootstrap)
	}
	if err != nil {
		return nil, err
	}
	return parseBootstrapText(data)
}

// sandboxAddress turns the address of a sandbox ("<protocol>+<address>") into
// what the sandbox's shim would have printed.
func sandboxAddress(address string, version uint32) (*bootapi.BootstrapResult, error) {
	protocol, rest, ok := strings.Cut(address, "+")
	if !ok {
		return nil, fmt.Errorf("sandbox address %.200q is not of the form protocol+address: %w", address, errdefs.ErrInvalidArgument)
	}
	if version > 3 {
		version = 4 // refused below, without overflow
	}
	return checkBootstrap(&bootapi.BootstrapResult{Version: int32(version), Protocol: protocol, Address: rest})
}
