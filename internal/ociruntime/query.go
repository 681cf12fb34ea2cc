package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// State is what a runtime says of a container.
type State struct {
	OCIVersion string `json:"ociVersion"`
	ID         string `json:"id"`
	// Pid is init's; 0 once it has ended.
	Pid int `json:"pid"`
	// Status is "creating", "created", "running", "paused" or "stopped".
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations"`
	Owner       string            `json:"owner"`
}

// State asks for one container; an unknown one is NotFound.
func (r *Runtime) State(ctx context.Context, id string) (State, error) {
	var s State
	err := r.query(ctx, call{op: "state", id: id, args: []string{"state", id}}, &s)
	return s, err
}

// Ps returns the pids of all processes of a container, in the order that the
// runtime gives them, as the caller's pid namespace numbers them.
func (r *Runtime) Ps(ctx context.Context, id string) ([]int, error) {
	var pids []int
	err := r.query(ctx, call{op: "ps", id: id, args: []string{"ps", "--format", "json", id}}, &pids)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if pid <= 0 || pid > maxPid {
			return nil, r.failure("ps", fmt.Sprintf("%s printed %d, which is no pid", r.binary(), pid), nil, errdefs.ErrInternal)
		}
	}
	return pids, nil
}

// List returns all containers under Root.
func (r *Runtime) List(ctx context.Context) ([]State, error) {
	var list []State
	err := r.query(ctx, call{op: "list", global: true, args: []string{"list", "--format", "json"}}, &list)
	return list, err
}

// Features returns what the runtime says that it supports, decoded and as it
// was printed. A runtime that has no such command gives NotImplemented.
func (r *Runtime) Features(ctx context.Context) (*features.Features, []byte, error) {
	c := call{op: "features", global: true, output: true, args: []string{"features"}}
	raw, err := r.call(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	f := new(features.Features)
	if err := r.decode(c.op, raw, f); err != nil {
		return nil, nil, err
	}
	return f, raw, nil
}

// Version returns what the runtime prints of its version, at least one line.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	own := Runtime{Binary: r.Binary, Timeout: r.Timeout}
	out, err := own.call(ctx, call{op: "version", global: true, output: true, args: []string{"--version"}})
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(strings.ToValidUTF8(string(out), "\uFFFD"))
	if text == "" {
		return "", r.failure("version", r.binary()+" printed no version", nil, errdefs.ErrInternal)
	}
	return text, nil
}

// query runs a call whose output is one JSON value.
func (r *Runtime) query(ctx context.Context, c call, into any) error {
	c.output = true
	out, err := r.call(ctx, c)
	if err != nil {
		return err
	}
	return r.decode(c.op, out, into)
}

func (r *Runtime) decode(op string, out []byte, into any) error {
	err := json.Unmarshal(out, into)
	if err == nil {
		return nil
	}
	if len(bytes.TrimSpace(out)) == 0 {
		err = errors.New("it printed nothing")
	}
	return r.failure(op, fmt.Sprintf("the answer of %s is not what was asked for: %v", r.binary(), err), err, errdefs.ErrInternal)
}
