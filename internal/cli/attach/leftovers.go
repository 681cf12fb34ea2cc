package attach

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dirPrefix begins the name of each directory of FIFOs: another client may
	// have directories beside ours.
	dirPrefix = "berth-"
	// leftMark is a file in a directory of FIFOs that nobody held when it was
	// looked at last.
	leftMark = "left"
	// leftTime passes between two looks at a directory.
	leftTime = time.Minute
)

// sweep removes directories of FIFOs that a killed client left and whose process
// has gone without a word to us. Each must be found without a holder twice: a
// shim that was killed holds nothing until its successor serves. What cannot be
// removed is left to the next sweep.
func sweep(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), dirPrefix) || !info.IsDir() || time.Since(info.ModTime()) < leftTime {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		mark := filepath.Join(dir, leftMark)
		_, err = os.Lstat(mark)
		switch marked := err == nil; {
		case held(dir):
			_ = os.Remove(mark)
		case marked:
			_ = os.RemoveAll(dir)
		default: // which sets the directory's time, too
			if f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				f.Close()
			}
		}
	}
}

// held says whether a process reads one of the FIFOs: a client does, and so does
// a shim, as long as it has the process. What is not ours counts as held.
func held(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return true
	}
	for _, e := range entries {
		if e.Name() == leftMark {
			continue
		}
		if e.Type() != fs.ModeNamedPipe {
			return true
		}
		fd, err := unix.Open(filepath.Join(dir, e.Name()), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.ENXIO) { // nobody reads
			return true
		}
	}
	return false
}
