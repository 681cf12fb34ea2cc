package speccheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountUses are mounts and their options.
var mountUses = []use{
	{
		name: "read-only bind mount", path: "mounts[3].options",
		prepare: tree, spec: []string{bindTree(`"bind", "ro"`)},
		probe: listTree, want: `/m ro`,
	},
	recursive("rro", `/m/sub ro\b`), recursive("rnosuid", `/m/sub \S*\bnosuid`), recursive("rnodev", `/m/sub \S*\bnodev`),
	recursive("rnoexec", `/m/sub \S*\bnoexec`), recursive("rnosymfollow", `/m/sub \S*\bnosymfollow`).with(runcs...),
	recursive("rnoatime", `/m/sub \S*\bnoatime`).with(runcs...).failing("crun"),
	recursive("rnodiratime", `/m/sub \S*\bnodiratime`).with(runcs...).failing("crun"),
	{
		name: "bind mount that follows no links", path: "mounts[3].options",
		prepare: tree, spec: []string{bindTree(`"rbind", "nosymfollow"`)},
		probe: listTree, want: `/m \S*\bnosymfollow`, by: runcs,
	},
	{
		name: "propagation of a bind mount", path: "mounts[3].options",
		prepare: tree, spec: []string{bindTree(`"rbind", "rshared"`)},
		probe: `awk '$5 == "/m"' /proc/self/mountinfo`, want: ` shared:`, by: runcs,
	},
	{
		name: "propagation of a bind mount in a shared root", path: "linux.rootfsPropagation",
		prepare: tree, spec: []string{bindTree(`"rbind", "rshared"`), `{"linux": {"rootfsPropagation": "rshared"}}`},
		probe: `awk '$5 == "/m"' /proc/self/mountinfo`, want: ` shared:`, by: []string{"runc-1.5", "crun"},
	},
	{
		name: "size of a tmpfs", path: "mounts[3].options",
		spec:  []string{`{"mounts": [{"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["size=128k"]}]}`},
		probe: `grep ' /m ' /proc/mounts`, want: `size=128k`,
	},
	{
		name: "tmpfs filled from below", path: "mounts[3].options[0]",
		spec:  []string{`{"mounts": [{"destination": "/full", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}]}`},
		probe: `grep ' /full ' /proc/mounts; cat /full/file 2>&1`, want: `tmpfs[^\n]*\nbelow`,
	},
	{
		name: "option that a tmpfs does not have", path: "mounts[3].options[0]",
		spec:  []string{`{"mounts": [{"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["berth"]}]}`},
		probe: `true`, want: `^$`, by: nobody, fails: everybody, // only the kernel knows
	},
	{
		name: "misspelt option of a bind mount", path: "mounts[3].options[1]",
		prepare: tree, spec: []string{bindTree(`"rbind", "readonly"`)},
		probe: listTree, want: `/m ro`, by: nobody,
	},
	{
		name: "file system that nobody knows", path: "mounts[3].type",
		spec:  []string{`{"mounts": [{"destination": "/m", "type": "berthfs", "source": "none"}]}`},
		probe: `true`, want: `^$`, by: nobody, fails: everybody, // a module may bring it
	},
	{
		name: "propagation of the root", path: "linux.rootfsPropagation",
		spec:  []string{`{"linux": {"rootfsPropagation": "rshared"}}`},
		probe: `awk '$5 == "/"' /proc/self/mountinfo`, want: ` shared:`, by: []string{"runc-1.5", "crun"},
	},
	{
		name: "propagation that nobody knows", path: "linux.rootfsPropagation",
		spec:  []string{`{"linux": {"rootfsPropagation": "berth"}}`},
		probe: `true`, want: `^$`, by: nobody,
	},
	{
		name: "masked path", path: "linux.maskedPaths",
		spec:  []string{`{"linux": {"maskedPaths": ["/proc/meminfo"]}}`},
		probe: `wc -c </proc/meminfo`, want: `^0\n`,
	},
	{
		name: "read-only path", path: "linux.readonlyPaths",
		spec:  []string{`{"linux": {"readonlyPaths": ["/proc/sys"]}}`},
		probe: `awk '$5 == "/proc/sys" {print $6}' /proc/self/mountinfo`, want: `^ro`,
	},
	{
		name: "SELinux label of mounts", path: "linux.mountLabel",
		spec:  []string{`{"linux": {"mountLabel": "system_u:object_r:container_file_t:s0"}}`},
		probe: `grep ' /tmp ' /proc/mounts`, want: `container_file_t`, needs: lsm("selinux"),
	},
}

// idmapUses map the owners of a volume. The container's root is 100000 on the
// host; files of the volume that are the host root's are its own, and what it
// makes there is the host root's.
func idmapUses() []use {
	const ids = `[{"containerID": 0, "hostID": 100000, "size": 65536}]`
	var list []use
	for _, root := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
	}{{"tmpfs", tmpfsRoot}, {"overlay", overlayRoot}} {
		for _, m := range []struct {
			name, path, mount string
			by                []string
		}{
			{
				"bind mount with mappings", "mounts[3].uidMappings",
				`"options": ["rbind"], "uidMappings": ` + ids + `, "gidMappings": ` + ids, newRunc,
			},
			{"option idmap", "mounts[3].options[1]", `"options": ["rbind", "idmap"]`, []string{"runc-1.5", "crun"}},
			{"option ridmap", "mounts[3].options[1]", `"options": ["rbind", "ridmap"]`, newRunc},
		} {
			want := `/m/file 0:0\n/m/new 0:0\n`
			if m.name == "option ridmap" {
				want += `/m/sub/file 0:0\n`
			}
			list = append(list, use{
				name: m.name + ", root on " + root.name, path: m.path,
				prepare: func(t *testing.T, dir string) {
					tree(t, dir)
					root.prepare(t, dir)
				},
				spec: []string{
					userNamespace, `{"root": {"path": "$DIR/root"}}`,
					`{"mounts": [{"destination": "/m", "type": "bind", "source": "$DIR/tree", ` + m.mount + `}]}`,
				},
				probe: `: >/m/new; for f in /m/file /m/new /m/sub/file; do stat -c "$f %u:%g" $f; done`, want: want,
				after: newIsRoots, by: m.by,
			})
		}
	}
	return append(list, use{
		name: "bind mount with mappings, volume on disk", path: "mounts[3].uidMappings",
		prepare: func(t *testing.T, dir string) {
			volume := filepath.Join(dir, "tree")
			if err := errors.Join(os.Mkdir(volume, 0o777), os.Chmod(volume, 0o777), os.WriteFile(filepath.Join(volume, "file"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		spec: []string{userNamespace, `{"mounts": [{"destination": "/m", "type": "bind", "source": "$DIR/tree", "options": ["bind"],
			"uidMappings": ` + ids + `, "gidMappings": ` + ids + `}]}`},
		probe: `: >/m/new; for f in /m/file /m/new; do stat -c "$f %u:%g" $f; done; cat /m/file && echo read`,
		want:  `/m/file 0:0\n/m/new 0:0\nread\n`,
		after: newIsRoots, by: newRunc, needs: diskMaps, fails: newRunc,
	}, use{
		name: "mappings without a user namespace", path: "mounts[3].uidMappings", prepare: tree,
		spec: []string{`{"mounts": [{"destination": "/m", "type": "bind", "source": "$DIR/tree", "options": ["rbind"],
			"uidMappings": [{"containerID": 0, "hostID": 2000, "size": 100}], "gidMappings": [{"containerID": 0, "hostID": 3000, "size": 100}]}]}`},
		probe: `stat -c "%u:%g" /m/file`, want: `2000:3000\n`, by: newRunc,
	})
}

// newIsRoots says whether what the container made is the host root's.
func newIsRoots(dir string) bool {
	uid, gid := owner(filepath.Join(dir, "tree", "new"))
	return uid == 0 && gid == 0
}

// diskMaps says whether the file system of temporary files cannot have id maps.
func diskMaps() string {
	var fs unix.Statfs_t
	if err := unix.Statfs("/tmp", &fs); err != nil {
		return err.Error()
	}
	if slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}, fs.Type) {
		return ""
	}
	return "a file system that has id maps"
}

func recursive(option, want string) use {
	return use{
		name: "option " + option, path: "mounts[3].options[1]",
		prepare: tree, spec: []string{bindTree(`"rbind", "` + option + `"`)},
		probe: listTree, want: want,
	}
}

const listTree = `awk '$5 ~ "^/m" {print $5, $6}' /proc/self/mountinfo`

func bindTree(options string) string {
	return `{"mounts": [{"destination": "/m", "type": "bind", "source": "$DIR/tree", "options": [` + options + `]}]}`
}

// tree mounts a tmpfs at tree and another one in it at tree/sub, each with a
// file of the host's root. Everybody may write there.
func tree(t *testing.T, dir string) {
	t.Helper()
	for _, path := range []string{filepath.Join(dir, "tree"), filepath.Join(dir, "tree", "sub")} {
		mountAt(t, path, "tmpfs", "mode=1777")
		if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// mountAt mounts a file system without a device, until the test's end.
func mountAt(t *testing.T, path, kind, data string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(kind, path, kind, 0, data); err != nil {
		t.Fatalf("mount %s at %s: %v", kind, path, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func tmpfsRoot(t *testing.T, dir string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	mountAt(t, root, "tmpfs", "mode=755")
	if err := os.CopyFS(root, os.DirFS(rootfs(t))); err != nil {
		t.Fatal(err)
	}
}

func overlayRoot(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := filepath.Join(dir, "lower") // an option of overlay must not have a comma, and the test's name may
	if err := os.Symlink(rootfs(t), lower); err != nil {
		t.Fatal(err)
	}
	mountAt(t, filepath.Join(dir, "root"), "overlay",
		fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir))
}

func fileThere(name string) func(dir string) bool {
	return func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
}
