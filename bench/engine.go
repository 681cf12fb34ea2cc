package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The engines that are measured.
const (
	stock = "stock"
	berth = "berth"
)

// stockToml leaves out of stock containerd what neither daemon is asked for
// here, the Kubernetes half above all: it is smaller and quicker without.
const stockToml = `version = 4
root = %[1]q
state = %[2]q
imports = []
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri", "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.server.v1.grpc"]
  address = %[3]q
[plugins."io.containerd.server.v1.ttrpc"]
  address = "%[3]s.ttrpc"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %[4]q
[plugins."io.containerd.internal.v1.opt"]
  path = "%[4]s-opt"
`

// engine is a running daemon.
type engine struct {
	lab       *lab
	name      string
	dir       string
	address   string
	namespace string
	mark      string // in the environment of the daemon and all it starts
	argv      []string
	cmd       *exec.Cmd
	exited    chan struct{} // closed once cmd.Wait has returned
}

func startEngine(ctx context.Context, l *lab, name string) (*engine, error) {
	e := &engine{
		lab: l, name: name, dir: filepath.Join(l.dir, name),
		namespace: filepath.Base(l.dir) + "-" + name,
	}
	e.address = filepath.Join(e.dir, "d.sock")
	e.mark = "BERTH_BENCH_MARK=" + e.namespace
	if err := os.Mkdir(e.dir, 0o711); err != nil {
		return nil, err
	}
	if err := e.prepare(); err != nil {
		return nil, err
	}
	if err := e.start(); err != nil {
		return nil, err
	}
	return e, e.awaitServing(ctx)
}

// start starts the daemon, for the first time or after kill.
func (e *engine) start() error {
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(e.argv[0], e.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(e.lab.env(), e.mark)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	e.cmd, e.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // the state is in cmd.ProcessState
	}()
	return nil
}

// kill ends the daemon by kill -9. Its containers go on.
func (e *engine) kill() error {
	if err := e.cmd.Process.Kill(); err != nil {
		return err
	}
	<-e.exited
	return nil
}

// prepare makes the command line and the configuration.
func (e *engine) prepare() error {
	root, state := filepath.Join(e.dir, "root"), filepath.Join(e.dir, "run")
	bin, peers := filepath.Join(e.lab.opts.source, "bin"), filepath.Join(e.lab.opts.source, "out", "peers", "bin")
	config := filepath.Join(e.dir, "config.toml")
	if e.name == berth {
		e.argv = []string{filepath.Join(bin, "berthd"), "--root", root, "--state", state, "--address", e.address, "--config", config}
		return os.WriteFile(config, nil, 0o600)
	}
	shim := filepath.Join(e.lab.dir, "bin", "containerd-shim-runc-v2")
	if err := os.Symlink(filepath.Join(peers, "containerd-shim-runc-v2"), shim); err != nil {
		return err
	}
	e.argv = []string{filepath.Join(peers, "containerd"), "--config", config}
	text := fmt.Sprintf(stockToml, root, state, e.address, filepath.Join(e.dir, "s"))
	return os.WriteFile(config, []byte(text), 0o600)
}

func (e *engine) awaitServing(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := os.Stat(e.address)
		if err == nil {
			if err = e.ctr(ctx, "version").run(); err == nil {
				return nil
			}
		}
		select {
		case <-e.exited:
			return fmt.Errorf("%s ended at once: %s: %s", e.name, e.cmd.ProcessState, e.log())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not serve: %w: %s", e.name, err, e.log())
		}
	}
}

func (e *engine) log() string {
	b, err := os.ReadFile(filepath.Join(e.dir, "log"))
	if err != nil {
		return err.Error()
	}
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return strings.TrimSpace(string(b))
}

// ctr is a call of stock ctr.
func (e *engine) ctr(ctx context.Context, args ...string) command {
	args = append([]string{"--address", e.address, "--namespace", e.namespace}, args...)
	return e.lab.command(ctx, filepath.Join(e.lab.opts.source, "out", "peers", "bin", "ctr"), args...)
}

// berth is a call of berth.
func (e *engine) berth(ctx context.Context, args ...string) command {
	args = append([]string{"--address", e.address, "--namespace", e.namespace}, args...)
	return e.lab.command(ctx, filepath.Join(e.lab.opts.source, "bin", "berth"), args...)
}

// stop ends the daemon, and the processes that it left: an empty group's shim
// stays for a while.
func (e *engine) stop(ctx context.Context) error {
	_ = e.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-e.exited:
	case <-ctx.Done():
		_ = e.cmd.Process.Kill()
		<-e.exited
		return fmt.Errorf("%s did not end: %w", e.name, ctx.Err())
	}
	for {
		pids := e.processes()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("processes of %s stay: %v", e.name, pids), ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// processes are the pids of the daemon, shims and guards: all that has the mark
// in its environment. Containers do not inherit it.
func (e *engine) processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile("/proc/" + entry.Name() + "/environ")
		if err == nil && strings.Contains("\x00"+string(env), "\x00"+e.mark+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}
