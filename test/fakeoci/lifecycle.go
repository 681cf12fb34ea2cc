package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/fakeoci/fault"
)

// spawnFlags are shared by create, exec and restore.
type spawnFlags struct {
	bundle, pidFile, consoleSocket, process, imagePath, workPath string
}

func (r *runtime) spawnFlags(args []string) (spawnFlags, error) {
	var f spawnFlags
	flags := newFlags(r.op)
	flags.StringVar(&f.pidFile, "pid-file", "", "")
	flags.StringVar(&f.consoleSocket, "console-socket", "", "")
	flags.Int("preserve-fds", 0, "")
	switch r.op {
	case "exec":
		flags.StringVar(&f.process, "process", "", "")
		flags.Bool("detach", false, "")
	case "restore":
		flags.Bool("detach", false, "")
		flags.Bool("no-subreaper", false, "")
		criuFlags(flags, &f.imagePath, &f.workPath)
		fallthrough
	default:
		flags.StringVar(&f.bundle, "bundle", ".", "")
		flags.Bool("no-pivot", false, "")
		flags.Bool("no-new-keyring", false, "")
	}
	if err := flags.Parse(args); err != nil {
		return f, err
	}
	if flags.NArg() != 1 {
		return f, fmt.Errorf("%q requires exactly 1 argument", r.op)
	}
	// The bundle becomes the working directory; the other paths are not meant
	// from there.
	for _, path := range []*string{&f.bundle, &f.pidFile} {
		if *path == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return f, err
		}
	}
	r.bundle = f.bundle
	return f, r.setID(flags.Arg(0))
}

func create(r *runtime, args []string) error {
	f, err := r.spawnFlags(args)
	if err != nil {
		return err
	}
	err = r.do(func() error { return r.create(f) })
	if err != nil {
		return fmt.Errorf("fakeoci create failed: %w", err)
	}
	return nil
}

// create makes the container and leaves its init waiting. What it made is
// removed when it fails by itself; an ordered failure leaves it, as a runtime
// that is killed does.
func (r *runtime) create(f spawnFlags) error {
	spec, err := loadSpec(f.bundle)
	if err != nil {
		return err
	}
	if spec.Process.Terminal && f.consoleSocket == "" {
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	}
	if !spec.Process.Terminal && f.consoleSocket != "" {
		return errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	if err := os.Mkdir(r.dir(), 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return errors.New("container with given ID already exists")
		}
		return err
	}
	c, err := r.launchInit(spec, f)
	if err != nil {
		return errors.Join(err, os.RemoveAll(r.dir()))
	}
	if err := r.point(fault.Middle); err != nil {
		return err
	}
	return r.writePid(f.pidFile, c.Pid)
}

func (r *runtime) launchInit(spec *specs.Spec, f spawnFlags) (*container, error) {
	if err := unix.Mkfifo(r.fifoPath(), 0o600); err != nil {
		return nil, err
	}
	rootfs := spec.Root.Path
	if !filepath.IsAbs(rootfs) {
		rootfs = filepath.Join(f.bundle, rootfs)
	}
	if info, err := os.Stat(rootfs); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("invalid rootfs: stat %s: not a directory", rootfs)
	}
	pid, err := r.spawn("init", spec.Process, rootfs, r.fifoPath(), f.consoleSocket)
	if err != nil {
		return nil, err
	}
	start, _ := processStat(pid)
	c := &container{
		OCIVersion: spec.Version, ID: r.id, Pid: pid, StartTime: start, Bundle: f.bundle, Rootfs: rootfs,
		Created: time.Now().UTC(), Annotations: spec.Annotations,
	}
	return c, r.save(c)
}

func loadSpec(bundle string) (*specs.Spec, error) {
	if err := os.Chdir(bundle); err != nil {
		return nil, err
	}
	data, err := os.ReadFile("config.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("JSON specification file config.json not found")
	}
	if err != nil {
		return nil, err
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, err
	}
	switch {
	case spec.Process == nil:
		return nil, errors.New("process property must not be empty")
	case spec.Root == nil:
		return nil, errors.New("root property must not be empty")
	}
	return spec, nil
}

// writePid writes the pid file in one step, unless something else was ordered.
func (r *runtime) writePid(path string, pid int) error {
	if path == "" {
		return nil
	}
	rule, ok, err := r.order(func(s *fault.Set) (fault.Rule, bool, error) { return s.TakePid(r.op, r.id) })
	if err != nil {
		return err
	}
	text := strconv.Itoa(pid)
	if ok && rule.Action == fault.NoPid {
		return nil
	}
	if ok {
		text = rule.Message
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func start(r *runtime, args []string) error {
	if err := r.onlyID(args); err != nil {
		return err
	}
	return r.do(func() error {
		c, err := r.load()
		if err != nil {
			return err
		}
		switch s := r.status(c); s {
		case "created":
			return r.release(c)
		case "stopped":
			return errors.New("cannot start a container that has stopped")
		case "running":
			return errors.New("cannot start an already running container")
		default:
			return fmt.Errorf("cannot start a container in the %s state", s)
		}
	})
}

// release lets the waiting init go: it is blocked until its fifo has a reader.
func (r *runtime) release(c *container) error {
	fd, err := unix.Open(r.fifoPath(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("exec fifo: %w", err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return os.Remove(r.fifoPath())
		}
		if r.status(c) == "stopped" {
			return errors.New("container process is already dead")
		}
	}
}

func (r *runtime) onlyID(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%q requires exactly 1 argument", r.op)
	}
	return r.setID(args[0])
}

func remove(r *runtime, args []string) error {
	flags := newFlags(r.op)
	force := flags.Bool("force", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := r.onlyID(flags.Args()); err != nil {
		return err
	}
	return r.do(func() error { return r.remove(*force) })
}

func (r *runtime) remove(force bool) error {
	c, err := r.load()
	if errors.Is(err, errNotExist) && force {
		// A create that was cut short has left processes and a directory.
		if err := r.killAll(); err != nil {
			return err
		}
		return os.RemoveAll(r.dir())
	}
	if err != nil {
		return err
	}
	if s := r.status(c); !force && s != "stopped" && s != "created" {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", r.id, s)
	}
	if err := r.killAll(); err != nil {
		return err
	}
	return os.RemoveAll(r.dir())
}

func execute(r *runtime, args []string) error {
	f, err := r.spawnFlags(args)
	if err != nil {
		return err
	}
	return r.do(func() error { return r.exec(f) })
}

func (r *runtime) exec(f spawnFlags) error {
	c, err := r.load()
	if err != nil {
		return err
	}
	switch r.status(c) {
	case "stopped":
		return errors.New("cannot exec in a stopped container")
	case "paused":
		return errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	data, err := os.ReadFile(f.process)
	if err != nil {
		return err
	}
	p := new(specs.Process)
	if err := json.Unmarshal(data, p); err != nil {
		return err
	}
	if p.Terminal && f.consoleSocket == "" {
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	}
	pid, err := r.spawn("exec", p, c.Rootfs, "", f.consoleSocket)
	if err != nil {
		return err
	}
	if err := r.point(fault.Middle); err != nil {
		return err
	}
	return r.writePid(f.pidFile, pid)
}
