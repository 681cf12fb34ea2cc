package speccheck

import (
	"bytes"
	"encoding/json"
	"strings"
)

// baseSpec is a container that each runtime runs: a shell on a shared root
// directory, without limits and without hardening.
const baseSpec = `{
	"ociVersion": "1.0.2",
	"process": {
		"user": {"uid": 0, "gid": 0},
		"cwd": "/",
		"env": ["PATH=/bin"],
		"capabilities": {
			"bounding": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"],
			"effective": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"],
			"permitted": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
		}
	},
	"root": {"path": "$ROOTFS"},
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
		{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}
	],
	"linux": {
		"cgroupsPath": "/$NAMESPACE/$ID",
		"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]
	}
}`

// userNamespace is a fragment: the container's root is 100000 on the host.
const userNamespace = `{"linux": {
	"namespaces": [{"type": "user"}],
	"uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
	"gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}]}}`

// build makes the spec of a use: the base, its fragments on top, and the
// command. names are pairs for a strings.Replacer.
func (u *use) build(command []string, names ...string) ([]byte, error) {
	var spec any
	for _, fragment := range append([]string{baseSpec}, u.spec...) {
		d := json.NewDecoder(strings.NewReader(strings.NewReplacer(names...).Replace(fragment)))
		d.UseNumber()
		var part any
		if err := d.Decode(&part); err != nil {
			return nil, err
		}
		spec = merge(spec, part)
	}
	args, err := json.Marshal(map[string]any{"process": map[string]any{"args": command}})
	if err != nil {
		return nil, err
	}
	var part any
	if err := json.Unmarshal(args, &part); err != nil {
		return nil, err
	}
	text, err := json.Marshal(merge(spec, part))
	for i := 0; i+1 < len(u.text); i += 2 {
		text = bytes.Replace(text, []byte(u.text[i]), []byte(u.text[i+1]), 1)
	}
	return text, err
}

// merge puts a part over a value: objects are merged, arrays are joined,
// everything else is replaced.
func merge(value, part any) any {
	switch part := part.(type) {
	case map[string]any:
		object, ok := value.(map[string]any)
		if !ok {
			return part
		}
		for k, v := range part {
			object[k] = merge(object[k], v)
		}
		return object
	case []any:
		if list, ok := value.([]any); ok {
			return append(list, part...)
		}
	}
	return part
}
