package reap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfo is siginfo_t of the kernel for SIGCHLD on 64-bit machines;
// unix.Siginfo hides what waitid fills in.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
	_                  [100]byte
}

var _ [unsafe.Sizeof(unix.Siginfo{})]byte = [unsafe.Sizeof(siginfo{})]byte{}

const (
	cldExited = 1
	cldDumped = 3
)

// waitStatus builds the classic form: exit code in bits 8–15, signal in bits
// 0–6, core flag in bit 7.
func (s *siginfo) waitStatus() unix.WaitStatus {
	switch s.code {
	case cldExited:
		return unix.WaitStatus((s.status & 0xff) << 8)
	case cldDumped:
		return unix.WaitStatus(s.status&0x7f | 0x80)
	default:
		return unix.WaitStatus(s.status & 0x7f)
	}
}

var errNotEnded = errors.New("the process has not ended")

func waitid(idType, id, options int) (unix.WaitStatus, error) {
	for {
		var si siginfo
		err := unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(&si)), unix.WEXITED|unix.WNOHANG|options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("waitid: %w", err)
		case si.pid == 0:
			return 0, errNotEnded
		}
		return si.waitStatus(), nil
	}
}

func waitPidfd(fd, options int) (unix.WaitStatus, error) { return waitid(unix.P_PIDFD, fd, options) }

// CollectChild reaps the ended child pid. ok is false when it is no child of
// ours or has not ended.
func CollectChild(pid int) (ws unix.WaitStatus, ok bool) {
	ws, err := waitid(unix.P_PID, pid, 0)
	return ws, err == nil
}

// ChildStatus is CollectChild that leaves the child a zombie.
func ChildStatus(pid int) (ws unix.WaitStatus, ok bool) {
	ws, err := waitid(unix.P_PID, pid, unix.WNOWAIT)
	return ws, err == nil
}

// statFields returns the fields of /proc/PID/stat from the third one (state)
// on; the second, the name, may hold blanks and parentheses.
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return nil, fmt.Errorf("/proc/%d/stat: no process name", pid)
	}
	return bytes.Fields(data[i+1:]), nil
}

// StartTime is field 22 of /proc/PID/stat: with the pid it names a process
// for the life of the machine.
func StartTime(pid int) (uint64, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// zombieStatus reads the status of an ended process that nobody has reaped:
// field 52 of /proc/PID/stat, shown to those who may ptrace it.
func zombieStatus(pid int) (unix.WaitStatus, bool) {
	f, err := statFields(pid)
	if err != nil || len(f) < 50 || len(f[0]) != 1 || f[0][0] != 'Z' {
		return 0, false
	}
	code, err := strconv.ParseUint(string(f[49]), 10, 32)
	if err != nil {
		return 0, false
	}
	return unix.WaitStatus(code), true
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, version 1 (64 bytes).
type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	pid      uint32
	tgid     uint32
	ppid     uint32
	ids      [8]uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3     // PIDFD_INFO_EXIT, Linux 6.15
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xFF, 11, struct pidfd_info)
)

var _ [64]byte = [unsafe.Sizeof(pidfdInfo{})]byte{}

// pidfdExitInfo asks the kernel for the status of a process that has been
// reaped by its parent.
func pidfdExitInfo(fd int) (unix.WaitStatus, error) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return 0, fmt.Errorf("the kernel does not tell (PIDFD_GET_INFO, Linux 6.15): %w", errno)
	}
	if info.mask&pidfdInfoExit == 0 {
		return 0, errors.New("the kernel does not tell (PIDFD_INFO_EXIT): not reaped yet")
	}
	return unix.WaitStatus(info.exitCode), nil
}
