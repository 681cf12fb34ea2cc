package speccheck

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/harness"
)

// seccompUses are members of linux.seccomp. The probes call mkdir, or kill with
// SIGUSR1 (10) and SIGUSR2 (12).
var seccompUses = []use{
	action("SCMP_ACT_ERRNO", `"errnoRet": 38, `, `not implemented`),
	action("SCMP_ACT_TRAP", "", `code 159`), action("SCMP_ACT_KILL", "", `code 159`),
	action("SCMP_ACT_KILL_THREAD", "", `code 159`), action("SCMP_ACT_KILL_PROCESS", "", `code 159`),
	action("SCMP_ACT_TRACE", "", `not implemented`), action("SCMP_ACT_LOG", "", `code 0\nSeccomp:\s2`),
	action("SCMP_ACT_NOTIFY", "", `^$`).with(nobody...),
	action("SCMP_ACT_BERTH", "", `^$`).with(nobody...),
	{
		name: "default action", path: "linux.seccomp.defaultErrnoRet",
		spec: []string{`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
			"syscalls": [{"names": $CALLS, "action": "SCMP_ACT_ALLOW"}]}}}`},
		probe: mkdirs, want: `not implemented`,
	},
	operator("EQ", 10, 0, denies10), operator("NE", 10, 0, denies12), operator("LT", 12, 0, denies10),
	operator("LE", 10, 0, denies10), operator("GT", 10, 0, denies12), operator("GE", 12, 0, denies12),
	operator("MASKED_EQ", 6, 2, denies10), operator("BERTH", 10, 0, `^$`).with(nobody...),
	profile("architectures", "architectures", `"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]`, `Seccomp:\s2`),
	profile("architecture that nobody knows", "architectures[0]", `"architectures": ["SCMP_ARCH_BERTH"]`, `^$`).with(nobody...),
	profile("architecture of a newer libseccomp", "architectures[1]", `"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_LOONGARCH64"]`, `^$`).
		with(nobody...).failing("runc-1.5", "crun"), // they know it, their libseccomp does not
	profile("flag SPEC_ALLOW", "flags[0]", `"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]`, `Seccomp:\s2`).with("runc-1.5", "crun"),
	profile("flag LOG", "flags[0]", `"flags": ["SECCOMP_FILTER_FLAG_LOG"]`, `Seccomp:\s2`).with("runc-1.5", "crun"),
	profile("flag that nobody knows", "flags[0]", `"flags": ["SECCOMP_FILTER_FLAG_BERTH"]`, `^$`).with(nobody...),
	{
		name: "listener", path: "linux.seccomp.listenerPath", prepare: listen,
		spec: []string{`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "$DIR/seccomp.sock", "listenerMetadata": "from berth",
			"syscalls": [{"names": ["mknod"], "action": "SCMP_ACT_NOTIFY"}]}}}`},
		probe: `grep Seccomp: /proc/self/status`, want: `Seccomp:\s2`, after: heard,
	},
}

const (
	mkdirs   = `mkdir /tmp/a 2>&1; echo code $?; grep Seccomp: /proc/self/status`
	kills    = `for s in USR1 USR2; do kill -$s 1 2>/dev/null && echo $s passes || echo $s denied; done`
	denies10 = `USR1 denied\nUSR2 passes`
	denies12 = `USR1 passes\nUSR2 denied`
)

// calls are the system calls that containers usually may make, without mkdir.
func calls() (string, error) {
	all := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{
		Bounding: []string{"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"},
	}}})
	names := []string{"chroot"}
	for _, rule := range all.Syscalls {
		names = append(names, rule.Names...)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, "mkdir") })
	text, err := json.Marshal(names)
	return string(text), err
}

func action(name, errno, want string) use {
	return use{
		name: "action " + strings.TrimPrefix(name, "SCMP_ACT_"), path: "linux.seccomp.syscalls[0].action",
		spec: []string{`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls": [{"names": ["mkdir", "mkdirat"], ` + errno + `"action": "` + name + `"}]}}}`},
		probe: mkdirs, want: want,
	}
}

func operator(op string, value, second int, want string) use {
	arg, err := json.Marshal(map[string]any{"index": 1, "value": value, "valueTwo": second, "op": "SCMP_CMP_" + op})
	if err != nil {
		panic(err)
	}
	return use{
		name: "operator " + op, path: "linux.seccomp.syscalls[0].args[0].op",
		spec: []string{`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [` + string(arg) + `]}]}}}`},
		probe: kills, want: want,
	}
}

func profile(name, path, member, want string) use {
	return use{
		name: name, path: "linux.seccomp." + path,
		spec: []string{`{"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", ` + member + `,
			"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}}}`},
		probe: mkdirs, want: want,
	}
}

// listen takes the descriptor that the runtime sends and writes down what came
// with it.
func listen(t *testing.T, dir string) {
	t.Helper()
	// The path of a socket is at most 107 bytes long.
	l, err := net.Listen("unix", filepath.Join(dir, "seccomp.sock"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return // the test has ended
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 64<<10)
		n, _ := conn.Read(b)
		_ = os.WriteFile(filepath.Join(dir, "heard"), b[:n], 0o600)
	}()
}

func heard(dir string) bool {
	return harness.Poll(30*time.Second, func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "heard"))
		return err == nil && strings.Contains(string(b), "from berth")
	})
}
