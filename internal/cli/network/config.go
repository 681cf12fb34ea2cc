package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The directories that are used where the environment does not name others.
const defaultConfDir = "/etc/cni/net.d"

// Debian's package has the plugins in the second.
const defaultPluginDirs = "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni"

// defaultConf is a bridge with addresses of its own, written where the host
// has no network configured.
const defaultConf = `{
  "cniVersion": "1.0.0",
  "name": "berth",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "berth0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.87.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "firewall"}
  ]
}
`

// Find names the host's configuration and plugins: NETCONFPATH and CNI_PATH,
// else the usual places. Where the host has no network configured, it writes
// one, a bridge, if the plugins for it are there.
func Find() (confDir string, pluginDirs []string, err error) {
	confDir = defaultConfDir
	if dir := os.Getenv("NETCONFPATH"); dir != "" {
		confDir = dir
	}
	dirs := defaultPluginDirs
	if path := os.Getenv("CNI_PATH"); path != "" {
		dirs = path
	}
	pluginDirs = strings.Split(dirs, ":")
	for _, dir := range append([]string{confDir}, pluginDirs...) {
		if !filepath.IsAbs(dir) {
			return "", nil, fmt.Errorf("network: %q is no absolute path (see NETCONFPATH and CNI_PATH)", dir)
		}
	}
	if has, err := configured(confDir); has || err != nil {
		return confDir, pluginDirs, err
	}
	for _, name := range []string{"bridge", "host-local", "portmap", "firewall"} {
		if !found(name, pluginDirs) {
			return "", nil, fmt.Errorf("network: the CNI plugin %q is not in %s (install the package containernetworking-plugins, or name the directory in CNI_PATH)", name, dirs)
		}
	}
	if err := os.MkdirAll(confDir, 0o755); err != nil {
		return "", nil, fmt.Errorf("network: %w", err)
	}
	// Two commands may come here at once: the one that is last wins, and both
	// write the same.
	tmp, err := os.CreateTemp(confDir, ".berth.*")
	if err != nil {
		return "", nil, fmt.Errorf("network: %w", err)
	}
	_, err = tmp.WriteString(defaultConf)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(confDir, "87-berth.conflist"))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return "", nil, fmt.Errorf("network: %w", err)
	}
	return confDir, pluginDirs, nil
}

func configured(dir string) (bool, error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("network: %w", err)
	}
	for _, e := range list {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			return true, nil
		}
	}
	return false, nil
}

func found(name string, dirs []string) bool {
	for _, dir := range dirs {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.Mode().IsRegular() {
			return true
		}
	}
	return false
}
