package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/console"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// holdConfig is what the holder is told, in a file.
type holdConfig struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Cwd  string   `json:"cwd"`
	// Fifo is opened for writing before the program is run: that is the wait
	// for start. Empty for execs.
	Fifo string `json:"fifo,omitempty"`
}

// reportFD is where the holder says "ready", or why not.
const (
	reportFD = 3
	ready    = "ready"
)

// hold is the life of the process that becomes the container's: check
// the program, wait for start, run it. It has been started by create or exec, and belongs to the
// nearest subreaper as soon as those have ended.
func hold(configPath string) {
	report := os.NewFile(reportFD, "report")
	unix.CloseOnExec(reportFD)
	fail := func(err error) {
		fmt.Fprint(report, err)
		os.Exit(1)
	}
	var c holdConfig
	data, err := os.ReadFile(configPath)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err == nil {
		err = os.Chdir(c.Cwd)
	}
	if err != nil {
		fail(err)
	}
	path, err := findProgram(c.Args, c.Env)
	if err != nil {
		fail(err)
	}
	if c.Fifo != "" {
		fmt.Fprint(report, ready)
		report.Close()
		report = os.Stderr
		if err := waitForStart(c.Fifo); err != nil {
			fail(err)
		}
	}
	// On success the report is closed without a word.
	fail(&fs.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, c.Args, c.Env)})
}

func waitForStart(fifo string) error {
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write([]byte{0})
	return err
}

// findProgram looks for the program as runc does, with its words.
func findProgram(args, env []string) (string, error) {
	if len(args) == 0 || args[0] == "" {
		return "", errors.New("no command specified")
	}
	name := args[0]
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", fmt.Errorf("exec: %q: %w", name, err)
		}
		return name, nil
	}
	for _, e := range env {
		dirs, ok := strings.CutPrefix(e, "PATH=")
		for _, dir := range filepath.SplitList(dirs) {
			if path := filepath.Join(dir, name); ok && executable(path) == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: %w", name, exec.ErrNotFound)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return syscall.EACCES
	}
	return nil
}

// spawn starts a holder for the process and returns its pid when it is ready
// (with a fifo) or has become the program (without).
func (r *runtime) spawn(name string, p *specs.Process, rootfs, fifo, consoleSocket string) (int, error) {
	cfg := holdConfig{
		Args: p.Args,
		Env:  append(append([]string{}, p.Env...), markerEnv+"="+r.dir()),
		Cwd:  workDir(rootfs, p.Cwd),
		Fifo: fifo,
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(r.dir(), fmt.Sprintf("%s-%d.json", name, os.Getpid()))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return 0, err
	}
	defer os.Remove(path)
	cmd := exec.Command("/proc/self/exe", holdOp, path)
	cmd.Env = append(os.Environ(), markerEnv+"="+r.dir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.Terminal {
		master, err := terminal(cmd, p.ConsoleSize)
		if err != nil {
			return 0, err
		}
		defer master.Close()
		if err := sendFile(consoleSocket, master); err != nil {
			return 0, err
		}
	} else {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	return launch(cmd, fifo != "")
}

// launch starts the holder and hears its report.
func launch(cmd *exec.Cmd, waits bool) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Start()
	w.Close()
	if slave, ok := cmd.Stdin.(*os.File); ok && slave != os.Stdin {
		slave.Close()
	}
	if err != nil {
		return 0, err
	}
	said, err := io.ReadAll(r)
	want := ""
	if waits {
		want = ready
	}
	if err == nil && string(said) == want {
		return cmd.Process.Pid, nil
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err == nil {
		err = fmt.Errorf("unable to start container process: %s", said)
	}
	return 0, err
}

// workDir is the process's directory below the rootfs where that has it, else
// the rootfs.
func workDir(rootfs, cwd string) string {
	dir := filepath.Join(rootfs, filepath.Join("/", cwd))
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return dir
	}
	return rootfs
}

// terminal gives the command a new terminal for its session and returns the
// other side.
func terminal(cmd *exec.Cmd, size *specs.Box) (*os.File, error) {
	pty, slavePath, err := console.NewPty()
	if err != nil {
		return nil, err
	}
	// A console hides its file; a duplicate of the fd is as good.
	fd, err := unix.FcntlInt(pty.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	pty.Close()
	if err != nil {
		return nil, err
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	slave, err := os.OpenFile(slavePath, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		master.Close()
		return nil, err
	}
	if size != nil {
		ws := &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)}
		if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, ws); err != nil {
			master.Close()
			slave.Close()
			return nil, err
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true
	return master, nil
}

// sendFile sends a file over a unix socket, with its name as the data.
func sendFile(socket string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fmt.Errorf("console socket %s: %w", socket, err)
	}
	return unix.Sendmsg(fd, []byte(f.Name()), unix.UnixRights(int(f.Fd())), nil, 0)
}
