package shim

import (
	"fmt"
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	lastSignal = 64
	sigIgn     = 1
	// kernelSigset is the size of the kernel's signal set in bytes.
	kernelSigset = 8
)

// sigaction is at least as large as the kernel's on every architecture, and
// begins with the handler.
type sigaction [4]uintptr

// ResetSignals undoes what whoever started the daemon ignored (nohup, a shell's
// "&", make): an ignored signal stays ignored through every execve, down into
// the containers. SIGPIPE and SIGHUP are caught from then on, which ends with
// an execve, and not ignored.
func ResetSignals() error {
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		var now, standard sigaction
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), kernelSigset, 0, 0); errno != 0 {
			return fmt.Errorf("signal %d: %w", sig, errno)
		}
		if now[0] != sigIgn {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&standard)), 0, kernelSigset, 0, 0); errno != 0 {
			return fmt.Errorf("signal %d: %w", sig, errno)
		}
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGHUP) // nobody reads it
	return nil
}
