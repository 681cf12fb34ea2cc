package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	image = "berth.test/busybox:1"

	// commandLimit bounds each program that the bench runs.
	commandLimit = 2 * time.Minute
)

// lab is a directory with the daemons in it, and a bundle for the bare runtime.
type lab struct {
	opts    options
	dir     string
	engines []*engine
	bundle  string // of the bare runtime; its rootfs is a mount
}

// openLab starts the daemons and gives each the image. close ends all.
func openLab(ctx context.Context, opts options) (_ *lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("containers need root")
	}
	dir, err := os.MkdirTemp("/tmp", "bb-")
	if err != nil {
		return nil, err
	}
	l := &lab{opts: opts, dir: dir, bundle: filepath.Join(dir, "bundle")}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(opts.runc, filepath.Join(dir, "bin", "runc")); err != nil {
		return nil, err
	}
	tar := filepath.Join(dir, "image.tar")
	if err := l.command(ctx, "go", "run", "./test/demoimage", image, tar).run(); err != nil {
		return nil, err
	}
	for _, name := range opts.engines {
		e, err := startEngine(ctx, l, name)
		if e != nil {
			l.engines = append(l.engines, e)
		}
		if err != nil {
			return nil, err
		}
		if err := e.ctr(ctx, "images", "import", tar).run(); err != nil {
			return nil, err
		}
	}
	return l, l.makeBundle(ctx)
}

// makeBundle makes a bundle for the bare runtime: the spec is what ctr makes,
// the root the image's, on the same sort of overlay.
func (l *lab) makeBundle(ctx context.Context) error {
	e := l.engines[0]
	rootfs := filepath.Join(l.bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return err
	}
	spec := filepath.Join(l.bundle, "config.json")
	if err := e.ctr(ctx, "run", "--rm", "--dump-config", spec, image, "dump", "true").run(); err != nil {
		return err
	}
	if err := l.mountRootfs(ctx, rootfs); err != nil {
		return err
	}
	return editJSON(spec, func(spec map[string]any) {
		spec["root"] = map[string]any{"path": "rootfs"}
		if linux, ok := spec["linux"].(map[string]any); ok {
			linux["cgroupsPath"] = "/" + e.namespace + "/bare"
		}
	})
}

// bareSnapshot is the snapshot that the bare runtime has as its root.
const bareSnapshot = "bare"

// mountRootfs mounts a snapshot above the image, by the command that ctr gives
// for it.
func (l *lab) mountRootfs(ctx context.Context, rootfs string) error {
	e := l.engines[0]
	list, err := e.ctr(ctx, "snapshots", "ls").output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[len(fields)-1] != "Committed" {
			continue
		}
		mount, err := e.ctr(ctx, "snapshots", "prepare", "--target", rootfs, bareSnapshot, fields[0]).output()
		if err != nil {
			return err
		}
		return l.command(ctx, "sh", "-e", "-c", mount).run()
	}
	return fmt.Errorf("the image is not unpacked:\n%s", list)
}

func (l *lab) unmountRootfs(ctx context.Context) error {
	rootfs := filepath.Join(l.bundle, "rootfs")
	if !isMount(rootfs) {
		return nil
	}
	if err := unix.Unmount(rootfs, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", rootfs, err)
	}
	return l.engines[0].ctr(ctx, "snapshots", "rm", bareSnapshot).run()
}

func editJSON(path string, edit func(map[string]any)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	edit(doc)
	if b, err = json.Marshal(doc); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// close ends the daemons and removes the directory.
func (l *lab) close() error {
	// The end of the bench is not to be stopped by what stopped the bench.
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	var errs []error
	errs = append(errs, l.unmountRootfs(ctx))
	for _, e := range l.engines {
		errs = append(errs, e.stop(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w (%s is kept)", err, l.dir)
	}
	return errors.Join(l.removeCgroups(), os.RemoveAll(l.dir))
}

// removeCgroups removes the cgroups of the engines' namespaces, which runc
// leaves.
func (l *lab) removeCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		for _, e := range l.engines {
			dirs, err := filepath.Glob(pattern + e.namespace)
			errs = append(errs, err)
			for _, dir := range dirs {
				errs = append(errs, os.Remove(dir))
			}
		}
	}
	return errors.Join(errs...)
}

func isMount(path string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(b), " "+path+" ")
}

// env is the environment of daemons and clients.
func (l *lab) env() []string {
	return []string{
		"PATH=" + filepath.Join(l.dir, "bin") + ":" + os.Getenv("PATH"),
		"HOME=" + os.Getenv("HOME"), "TMPDIR=" + l.dir, "LANG=C.UTF-8",
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1",
	}
}

// command is a program to run, once.
type command struct {
	*exec.Cmd
	cancel context.CancelFunc
}

func (l *lab) command(ctx context.Context, name string, args ...string) command {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = l.env(), l.opts.source
	return command{cmd, cancel}
}

// bare is the runtime without an engine.
func (l *lab) bare(ctx context.Context, args ...string) command {
	return l.command(ctx, l.opts.runc, append([]string{"--root", filepath.Join(l.dir, "runc")}, args...)...)
}

// output runs the program and returns its stdout.
func (c command) output() (string, error) {
	defer c.cancel()
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	return string(out), nil
}

// run runs the program; its error has what it wrote.
func (c command) run() error {
	_, err := c.time()
	return err
}

// time runs the program and says how long it took. Its output goes to a file:
// a container in the background may keep that for ever, and a pipe's end would
// not come.
func (c command) time() (time.Duration, error) {
	defer c.cancel()
	out, err := os.CreateTemp("", "bench-")
	if err != nil {
		return 0, err
	}
	defer out.Close()
	if err := os.Remove(out.Name()); err != nil {
		return 0, err
	}
	c.Stdout, c.Stderr = out, out
	begin := time.Now()
	err = c.Run()
	took := time.Since(begin)
	if err == nil {
		return took, nil
	}
	text := make([]byte, 4<<10)
	n, _ := out.ReadAt(text, 0) // what there is says more than why there is no more
	return 0, fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, bytes.TrimSpace(text[:n]))
}
