package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

// maxHookInput bounds the state on standard input and the bundle's spec.
const maxHookInput = 10 << 20

// hookCommand is what specs of containerd name as a hook: it fills in the
// templates among its arguments and environment ({{id}}, {{bundle}}, {{rootfs}},
// {{pid}}, {{status}}, {{annotation "key"}}) and becomes that program.
func hookCommand() *cli.Command {
	return &cli.Command{
		Name:            "oci-hook",
		Usage:           "fill in the arguments of an OCI hook and run it",
		ArgsUsage:       "COMMAND [ARG...]",
		SkipFlagParsing: true,
		Action: func(_ context.Context, c *cli.Command) error {
			args, env, err := fillHook(os.Stdin, c.Args().Slice(), os.Environ())
			if err != nil {
				return fmt.Errorf("oci-hook: %w", err)
			}
			path, err := exec.LookPath(args[0])
			if err != nil {
				return fmt.Errorf("oci-hook: %w", err)
			}
			return fmt.Errorf("oci-hook: run %s: %w", path, unix.Exec(path, args, env))
		},
	}
}

// fillHook fills the templates in from the container's state, which the
// runtime writes to a hook's standard input, and its bundle.
func fillHook(input io.Reader, args, env []string) (filledArgs, filledEnv []string, err error) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return nil, nil, errors.New("no command given")
	}
	var state specs.State
	if err := json.NewDecoder(io.LimitReader(input, maxHookInput)).Decode(&state); err != nil {
		return nil, nil, fmt.Errorf("state on standard input: %w", err)
	}
	rootfs, err := bundleRoot(state.Bundle)
	if err != nil {
		return nil, nil, err
	}
	funcs := template.FuncMap{
		"id":         func() string { return state.ID },
		"bundle":     func() string { return state.Bundle },
		"rootfs":     func() string { return rootfs },
		"pid":        func() int { return state.Pid },
		"status":     func() string { return string(state.Status) },
		"annotation": func(key string) string { return state.Annotations[key] },
	}
	if args, err = fill(funcs, args); err != nil {
		return nil, nil, err
	}
	env, err = fill(funcs, env)
	return args, env, err
}

func bundleRoot(bundle string) (string, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // read only
	var spec struct {
		Root struct {
			Path string `json:"path"`
		} `json:"root"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxHookInput)).Decode(&spec); err != nil {
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	if filepath.IsAbs(spec.Root.Path) {
		return spec.Root.Path, nil
	}
	return filepath.Join(bundle, spec.Root.Path), nil
}

func fill(funcs template.FuncMap, texts []string) ([]string, error) {
	filled := make([]string, len(texts))
	for i, text := range texts {
		t, err := template.New("").Funcs(funcs).Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		var b strings.Builder
		if err := t.Execute(&b, nil); err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		filled[i] = b.String()
	}
	return filled, nil
}
