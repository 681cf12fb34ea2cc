package copy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unpack reads a tar stream to its end and makes its files below root. What is
// there already and is no directory is replaced; directories are joined. A
// nil owner leaves new files to the caller. Names that lead out of root are
// refused.
func Unpack(r io.Reader, root *os.Root, owner Owner) error {
	u := unpacker{root: root, owner: owner, dirs: make(map[string]*tar.Header)}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return u.finish(r)
		}
		if err != nil {
			return fmt.Errorf("tar stream: %w", err)
		}
		name := path.Clean(h.Name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("tar stream: %q leads out of the directory", h.Name)
		}
		if name == "." {
			continue // the directory that is there
		}
		if err := u.make(tr, name, h); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

type unpacker struct {
	root  *os.Root
	owner Owner
	order []string
	dirs  map[string]*tar.Header // whose times and modes are set at the end
}

func (u *unpacker) make(tr *tar.Reader, name string, h *tar.Header) error {
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	have, err := u.root.Lstat(name)
	switch {
	case err == nil && h.Typeflag == tar.TypeDir && have.IsDir():
	case err == nil && (h.Typeflag == tar.TypeDir || have.IsDir()):
		return errors.New("a directory and a file have this name")
	case err == nil:
		if err := u.root.Remove(name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if have == nil {
			// Writable until the end: the files in it come next.
			err = u.root.Mkdir(name, 0o700)
		} else {
			err = nil
		}
		u.order, u.dirs[name] = append(u.order, name), h
	case tar.TypeReg:
		err = u.file(tr, name)
	case tar.TypeSymlink:
		err = u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		// The first name was made above, and its attributes are this one's.
		if !filepath.IsLocal(h.Linkname) {
			return fmt.Errorf("link to %q leads out of the directory", h.Linkname)
		}
		return u.root.Link(h.Linkname, name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = u.node(name, h)
	default:
		return fmt.Errorf("entry of type %q", h.Typeflag)
	}
	if err != nil || h.Typeflag == tar.TypeDir {
		return err
	}
	return u.attributes(name, h)
}

func (u *unpacker) file(tr *tar.Reader, name string) error {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, tr)
	return errors.Join(err, f.Close())
}

func (u *unpacker) node(name string, h *tar.Header) error {
	dir, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	mode := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	return unix.Mknodat(int(dir.Fd()), path.Base(name), mode|0o600, int(dev))
}

// attributes come in this order: a change of owner takes set-id bits away.
func (u *unpacker) attributes(name string, h *tar.Header) error {
	if u.owner != nil {
		uid, gid := u.owner(h.Uid, h.Gid)
		if err := u.root.Lchown(name, uid, gid); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	if err := u.root.Chmod(name, h.FileInfo().Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

// finish sets the directories' attributes, the inner ones first, and reads what
// pads the stream, for a writer that would break its pipe.
func (u *unpacker) finish(r io.Reader) error {
	for i := len(u.order) - 1; i >= 0; i-- {
		name := u.order[i]
		if err := u.attributes(name, u.dirs[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	_, err := io.Copy(io.Discard, r)
	return err
}
