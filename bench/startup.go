package main

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// measureStartup times the start of the clients beside that of a program that
// does nothing.
func (l *lab) measureStartup(ctx context.Context) ([]figure, error) {
	empty, err := l.emptyProgram(ctx)
	if err != nil {
		return nil, err
	}
	version := func(name, path string, args ...string) variant {
		return variant{name, func(ctx context.Context, _ int) (time.Duration, error) {
			return l.command(ctx, path, args...).time()
		}}
	}
	return l.interleave(ctx, "startup", l.opts.rounds, []variant{
		version("empty Go program", empty),
		version("berth --version", filepath.Join(l.opts.source, "bin", "berth"), "--version"),
		version("ctr --version", filepath.Join(l.opts.source, "out", "peers", "bin", "ctr"), "--version"),
	})
}

// emptyProgram builds a Go program without anything, as Berth's are built.
func (l *lab) emptyProgram(ctx context.Context) (string, error) {
	source, program := filepath.Join(l.dir, "empty.go"), filepath.Join(l.dir, "empty")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		return "", err
	}
	build := l.command(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, source)
	build.Env = append(build.Env, "CGO_ENABLED=0")
	return program, build.run()
}
