package shim

import (
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What this process was made to ignore, a child of it does not.
func TestResetSignals(t *testing.T) {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR2)
	for _, sig := range []unix.Signal{unix.SIGTTIN, 32, 34} { // those that Go's runtime leaves alone
		ignore := sigaction{sigIgn}
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&ignore)), 0, kernelSigset, 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	t.Cleanup(func() { signal.Reset(unix.SIGPIPE, unix.SIGHUP) })
	if err := ResetSignals(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("grep", "SigIgn", "/proc/self/status").Output()
	if err != nil || strings.TrimSpace(string(out)) != "SigIgn:\t0000000000000000" {
		t.Errorf("a child has %q (%v)", out, err)
	}
	// And neither ends this process.
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE} {
		if err := unix.Kill(unix.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
	}
}
