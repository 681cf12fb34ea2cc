package executor

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds /etc/passwd and /etc/group of a step.
const maxUserFile = 10 << 20

// lookupUser finds what a USER line says: a name, a uid, "user:group", nothing
// for root. A name is looked up in the step's own files. These have to be
// regular files, or not there, even when nobody asks: the OCI runtime opens
// them too, and waits for ever where one is a FIFO.
func lookupUser(root *rootfs, name string) (specs.User, error) {
	passwd, err := openUserFile(root, "/etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	defer passwd.Close()
	group, err := openUserFile(root, "/etc/group")
	if err != nil {
		return specs.User{}, err
	}
	defer group.Close()
	if u, ok, err := numericUser(name); ok || err != nil {
		return u, err
	}
	u, err := lookupFiles(passwd, group, name)
	if err != nil && name == "" {
		return specs.User{AdditionalGids: []uint32{0}}, nil // root needs no files
	}
	if err != nil {
		return specs.User{}, fmt.Errorf("user %q of the step: %w", name, err)
	}
	return u, nil
}

// numericUser reads "uid:gid", for which no file is needed.
func numericUser(name string) (_ specs.User, ok bool, _ error) {
	uid, gid, both := strings.Cut(name, ":")
	if !both || !digits(uid) || !digits(gid) {
		return specs.User{}, false, nil
	}
	u, err := parseID(uid)
	if err != nil {
		return specs.User{}, false, err
	}
	g, err := parseID(gid)
	if err != nil {
		return specs.User{}, false, err
	}
	return specs.User{UID: u, GID: g, AdditionalGids: []uint32{g}}, true, nil
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// parseID refuses 1<<32-1, which to the kernel means "no id".
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return 0, fmt.Errorf("user or group id %s is out of range: %w", s, errdefs.ErrInvalidArgument)
	}
	return uint32(n), nil
}

func lookupFiles(passwd, group io.Reader, name string) (specs.User, error) {
	if name == "" {
		name = "0"
	}
	found, err := user.GetExecUser(name, nil, passwd, group)
	if err != nil {
		return specs.User{}, err
	}
	// The numbers come from the step's files and may be anything.
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id >= math.MaxUint32 {
			return specs.User{}, fmt.Errorf("user or group id %d is out of range: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	u := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	for _, g := range found.Sgids {
		u.AdditionalGids = append(u.AdditionalGids, uint32(g))
	}
	if !slices.Contains(u.AdditionalGids, u.GID) {
		u.AdditionalGids = slices.Insert(u.AdditionalGids, 0, u.GID)
	}
	return u, nil
}

// userFile is a regular file of bounded size. One that is not there is empty.
type userFile struct {
	io.Reader
	file *os.File
}

func (f userFile) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

func openUserFile(root *rootfs, path string) (userFile, error) {
	h, err := root.open(path)
	if missing(err) {
		return userFile{Reader: strings.NewReader("")}, nil
	}
	if err != nil {
		return userFile{}, fmt.Errorf("open %s: %w", path, pathCause(err))
	}
	defer h.Close()
	// Looked at before it is opened: opening a FIFO waits, a device may do anything.
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return userFile{}, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return userFile{}, fmt.Errorf("%s is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	if st.Size > maxUserFile {
		return userFile{}, fmt.Errorf("%s has %d bytes, more than the %d that are read: %w", path, st.Size, maxUserFile, errdefs.ErrInvalidArgument)
	}
	f, err := pathrs.Reopen(h, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return userFile{}, fmt.Errorf("open %s: %w", path, pathCause(err))
	}
	return userFile{Reader: io.LimitReader(f, maxUserFile), file: f}, nil
}

// pathCause takes the path out of an error: it is one of this machine, which
// whoever sent the step need not know.
func pathCause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
