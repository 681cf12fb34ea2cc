package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// stockToml keeps what these tests do not use out of stock containerd: it
// starts quicker, and nothing of it touches directories outside of ours.
const stockToml = `version = 4
root = %q
state = %q
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri", "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]
imports = []
[plugins."io.containerd.server.v1.grpc"]
  address = %q
[plugins."io.containerd.server.v1.ttrpc"]
  address = %q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = %q
`

// oldToml is the same for containerd 1.6.
const oldToml = `version = 2
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
]
[grpc]
  address = %q
[ttrpc]
  address = %q
`

// berthToml lets a shim go soon after its last container, which the leak check
// waits for.
const berthToml = `[shim]
linger = %q
`

func (d *Daemon) writeConfig() error {
	text := fmt.Sprintf(berthToml, max(d.config.Linger, 200*time.Millisecond).String())
	switch {
	case d.config.Old:
		text = fmt.Sprintf(oldToml, d.Root, d.State, d.Address, d.Address+".ttrpc")
	case d.Kind == Stock:
		text = fmt.Sprintf(stockToml, d.Root, d.State, d.Address, d.Address+".ttrpc", filepath.Join(d.Dir, "s"),
			filepath.Join(d.Dir, "opt"), filepath.Join(d.Dir, "verifier"))
	}
	if err := os.WriteFile(filepath.Join(d.Dir, "config.toml"), []byte(text+d.config.Toml), 0o600); err != nil {
		return err
	}
	return d.linkRuntimes()
}

// mountRoot makes the root directory as small as the test wants it.
func (d *Daemon) mountRoot() error {
	if d.config.RootSize == 0 {
		return nil
	}
	if err := os.Mkdir(d.Root, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", d.Root, "tmpfs", 0, fmt.Sprintf("size=%d", d.config.RootSize)); err != nil {
		return fmt.Errorf("mount a small %s: %w", d.Root, err)
	}
	return nil
}

// linkRuntimes makes the directory that comes first in the daemon's PATH: it
// holds the runtime and the shims under test.
func (d *Daemon) linkRuntimes() error {
	bin := filepath.Join(d.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	links := map[string]string{"runc": d.Programs.Runc}
	if d.Kind == Stock {
		links["containerd-shim-runc-v2"] = d.Programs.StockShim
	}
	if d.config.OwnShim {
		links["containerd-shim-runc-v2"], links["containerd-shim-berth-v2"] = d.Programs.Shim, d.Programs.Shim
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	return nil
}

// Env is the environment of the daemon and of its clients.
func (d *Daemon) Env() []string {
	env := []string{
		"PATH=" + filepath.Join(d.Dir, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + d.Dir,
		"TMPDIR=" + d.Dir,
		"LANG=C.UTF-8",
		"TERM=xterm",
		markVar + "=" + d.Namespace,
		// Stock ctr would write about the machine's cgroups to the container's stderr.
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1",
		"CONTAINERD_ADDRESS=" + d.Address,
		"CONTAINERD_NAMESPACE=" + d.Namespace,
	}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" {
		env = append(env, "GOCOVERDIR="+dir)
	}
	return env
}
