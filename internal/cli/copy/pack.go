// Package copy moves files between two directories as a tar stream. Both sides
// are handles (os.Root): no link in either leads out of it.
package copy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// Owner translates a file's owner between the two sides.
type Owner func(uid, gid int) (int, int)

// Pack writes the file or tree at name below root to w, under the name as;
// "." for the contents of a directory. A nil owner keeps owners. It follows no
// link. The stream has its end when it returns nil.
func Pack(w io.Writer, root *os.Root, name, as string, owner Owner) error {
	p := packer{tw: tar.NewWriter(w), root: root, owner: owner, seen: make(map[inode]string)}
	if err := p.add(name, as); err != nil {
		return err
	}
	return p.tw.Close()
}

type packer struct {
	tw    *tar.Writer
	root  *os.Root
	owner Owner
	seen  map[inode]string // first names of files that have several
}

type inode struct{ dev, ino uint64 }

func (p *packer) add(name, as string) error {
	info, err := p.root.Lstat(name)
	if err != nil {
		return err
	}
	if err := p.header(name, as, info); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !info.IsDir() {
		return nil
	}
	dir, err := p.root.Open(name)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err := errors.Join(err, dir.Close()); err != nil {
		return err
	}
	for _, n := range names {
		err := p.add(path.Join(name, n), path.Join(as, n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return err
		}
	}
	return nil
}

func (p *packer) header(name, as string, info fs.FileInfo) error {
	if info.Mode().Type() == fs.ModeSocket {
		return nil // means nothing without its program
	}
	link := ""
	if info.Mode().Type() == fs.ModeSymlink {
		var err error
		if link, err = p.root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = as, "", "", tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && p.owner != nil {
		h.Uid, h.Gid = p.owner(h.Uid, h.Gid)
	}
	if ok && info.Mode().IsRegular() && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, seen := p.seen[id]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tw.WriteHeader(h)
		}
		p.seen[id] = as
	}
	if !info.Mode().IsRegular() {
		return p.tw.WriteHeader(h)
	}
	// Another file may stand here by now: not a FIFO that waits, nor a link.
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !now.Mode().IsRegular() {
		return errors.New("it changed while it was read")
	}
	h.Size = now.Size()
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(p.tw, f, h.Size); err != nil {
		return fmt.Errorf("it changed while it was read: %w", err)
	}
	return nil
}
