package logfile

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds a line that is read; a longer one is none of ours.
const maxLine = 1 << 20

// Filter says which records a reader gives.
type Filter struct {
	// Since and Until bound the time; zero is no bound.
	Since, Until time.Time
	// Tail is how many lines there are at most, of those that the bounds let
	// through; negative is all. What is written later is not counted.
	Tail int64
}

// Reader reads a log from its oldest record to its newest, over its rotated
// files, while it is written and rotated. Close it.
type Reader struct {
	path    string
	filter  Filter
	file    *os.File // nil before the log exists
	in      *bufio.Reader
	queue   []*os.File // to be read after file; of each file, all is there
	next    *os.File   // written after file; file is read to its end once more
	part    []byte     // of a line whose end is not there yet
	tooLong bool       // part is dropped: the line is no record
	skipped int
}

// Read opens the log at a path. One that does not exist has no records so far.
func Read(path string, filter Filter) (*Reader, error) {
	files, err := openAll(path)
	if err != nil {
		return nil, err
	}
	r := &Reader{path: path, filter: filter}
	begin, err := r.begin(files)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	closeAll(files[begin.file:]) // they are older
	files = files[:begin.file]
	slices.Reverse(files)
	r.queue = files
	if r.advance(); r.file != nil {
		if _, err := r.file.Seek(begin.offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// Skipped is how many lines were no records.
func (r *Reader) Skipped() int { return r.skipped }

// Close closes the files.
func (r *Reader) Close() error {
	closeAll(append(r.queue, r.file, r.next))
	r.queue, r.file, r.next = nil, nil, nil
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // it was only read
		}
	}
}

// Next returns the next record. io.EOF is the end of what is there now; a later
// call sees what was written meanwhile.
func (r *Reader) Next() (Record, error) {
	for {
		line, err := r.line()
		if err == io.EOF {
			more, err := r.more()
			if err != nil {
				return Record{}, err
			}
			if !more {
				return Record{}, io.EOF
			}
			continue
		}
		if err != nil {
			return Record{}, err
		}
		rec, ok := parseRecord(line)
		switch {
		case !ok:
			r.skipped++
		case r.filter.passes(rec):
			return rec, nil
		}
	}
}

func (f *Filter) passes(rec Record) bool {
	return !rec.Time.Before(f.Since) && (f.Until.IsZero() || !rec.Time.After(f.Until))
}

// line returns the next whole line; it is valid until the next call.
func (r *Reader) line() ([]byte, error) {
	if r.file == nil {
		return nil, io.EOF
	}
	for {
		piece, err := r.in.ReadSlice('\n')
		if !r.tooLong {
			r.part = append(r.part, piece...)
		}
		if len(r.part) > maxLine {
			r.part, r.tooLong = nil, true
		}
		switch {
		case err == bufio.ErrBufferFull:
			continue
		case err != nil:
			return nil, err
		}
		line := r.part
		r.part, r.tooLong = r.part[:0], false
		return line, nil
	}
}

// more goes on to the file after this one. Of a file that was renamed more may
// have been written just before: it is read to its end once more.
func (r *Reader) more() (bool, error) {
	if r.next != nil {
		r.queue, r.next = append(r.queue, r.next), nil
	}
	if len(r.queue) > 0 {
		r.advance()
		return true, nil
	}
	var err error
	r.next, err = r.newer()
	if r.next != nil && r.file == nil {
		return r.more()
	}
	return r.next != nil, err
}

// advance goes on to the next file in the queue.
func (r *Reader) advance() {
	if len(r.queue) == 0 {
		return
	}
	closeAll([]*os.File{r.file})
	r.file, r.queue = r.queue[0], r.queue[1:]
	r.in = bufio.NewReaderSize(r.file, 32<<10)
	if len(r.part) > 0 {
		// The rest of a line whose writer was killed, or had no room.
		r.part = r.part[:0]
		r.skipped++
	}
	r.tooLong = false
}

// newer opens the file that was begun after the one that is read; nil when
// there is none.
func (r *Reader) newer() (*os.File, error) {
	if r.file == nil {
		// There was no file yet. By now there may be several.
		files, err := openAll(r.path)
		if len(files) == 0 || err != nil {
			return nil, err
		}
		closeAll(files[:len(files)-1])
		return files[len(files)-1], nil
	}
	own, err := r.file.Stat()
	if err != nil {
		return nil, err
	}
	newest, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && os.SameFile(own, newest) {
		return nil, nil
	}
	for try := 0; ; try++ {
		files, err := openAll(r.path)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(files, func(f *os.File) bool { return same(f, own) })
		if at < 0 && try < 3 {
			closeAll(files) // it may have been renamed while we looked
			continue
		}
		var next *os.File
		switch {
		case at > 0:
			next = files[at-1]
		case at < 0 && len(files) > 0:
			next = files[len(files)-1] // ours is removed: the oldest that is left
		}
		closeAll(slices.DeleteFunc(files, func(f *os.File) bool { return f == next }))
		return next, nil
	}
}

func same(f *os.File, info os.FileInfo) bool {
	other, err := f.Stat()
	return err == nil && os.SameFile(info, other)
}

// older lists the rotated files of a log, the newest first.
func older(path string) []string {
	var names []string
	for _, n := range rotations(path) {
		names = append(names, rotated(path, n))
	}
	return names
}

// rotations are the numbers of the rotated files, in order. A file that is
// renamed while the directory is read may be missing.
func rotations(path string) []int {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	var numbers []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if n, err := strconv.Atoi(digits); ok && err == nil && n > 0 && n <= maxFiles && strconv.Itoa(n) == digits {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// openAll opens the files of a log, the newest first. Names go from the newest
// to the oldest and files only get higher ones, so that one which is renamed
// meanwhile is met again. A directory shows some names only while nothing is
// renamed, and a writer may rotate as fast as files are opened here: so every
// name is tried up to the highest one seen, and on until several are not there.
func openAll(path string) ([]*os.File, error) {
	const end = 4 // names that are not there; a rotation leaves one gap at a time
	var files []*os.File
	last := 0
	if numbers := rotations(path); len(numbers) > 0 {
		last = numbers[len(numbers)-1]
	}
	for n, missing := 0, 0; n <= last || missing < end; n++ {
		f, err := os.Open(rotated(path, n))
		if errors.Is(err, fs.ErrNotExist) {
			missing++
			continue
		}
		missing = 0
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = meet(files, f)
	}
	return files, nil
}

// meet adds a file to those of a scan. One that is met again is older than all that
// were met since: those were begun after the scan had passed.
func meet(files []*os.File, f *os.File) []*os.File {
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return files
	}
	if i := slices.IndexFunc(files, func(o *os.File) bool { return same(o, info) }); i >= 0 {
		_ = files[i].Close()
		files = slices.Delete(files, i, i+1)
	}
	return append(files, f)
}

// position is where to begin: in the file with index file-1, so that
// files[:file] are to be read.
type position struct {
	file   int
	offset int64
}

// begin finds the first record that the filter may let through.
func (r *Reader) begin(files []*os.File) (position, error) {
	lines := r.filter.Tail
	ended := map[string]bool{}
	at := position{}
	for i, f := range files {
		back, err := newBackward(f)
		if err != nil {
			return at, err
		}
		at = position{i + 1, back.end}
		if r.filter.Tail == 0 {
			return at, nil
		}
		if info, err := f.Stat(); err == nil && info.ModTime().Before(r.filter.Since) {
			return at, nil // all of it, and of those before, is too old
		}
		if r.filter.Tail < 0 {
			at.offset = 0
			continue
		}
		for {
			line, start, err := back.previous()
			if err == io.EOF {
				at.offset = 0
				break
			}
			if err != nil {
				return at, err
			}
			rec, ok := parseRecord(line)
			if !ok || !r.filter.Until.IsZero() && rec.Time.After(r.filter.Until) {
				at.offset = start
				continue
			}
			if rec.Time.Before(r.filter.Since) {
				return at, nil
			}
			if strings.HasSuffix(rec.Text, "\n") || !ended[rec.Stream] {
				if lines--; lines < 0 {
					return at, nil
				}
			}
			ended[rec.Stream] = true
			at.offset = start
		}
	}
	return at, nil
}

// backward reads a file line by line from its end. What follows the last line
// break is no line yet.
type backward struct {
	file io.ReaderAt
	end  int64  // behind the last whole line
	pos  int64  // of buf in the file
	buf  []byte // what is read and not yet returned
}

func newBackward(f *os.File) (*backward, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := &backward{file: f, pos: info.Size()}
	for {
		if i := bytes.LastIndexByte(b.buf, '\n'); i >= 0 || b.pos == 0 {
			b.buf = b.buf[:i+1]
			b.end = b.pos + int64(i+1)
			return b, nil
		}
		if err := b.fill(); err != nil {
			return nil, err
		}
	}
}

// fill puts another block before what is there.
func (b *backward) fill() error {
	if len(b.buf) > maxLine {
		return errors.New("the log has a line without an end")
	}
	n := min(b.pos, 64<<10)
	block := make([]byte, n, int(n)+len(b.buf))
	if _, err := b.file.ReadAt(block, b.pos-n); err != nil {
		return err
	}
	b.buf, b.pos = append(block, b.buf...), b.pos-n
	return nil
}

// previous returns the line before, and where it begins; io.EOF before the
// first.
func (b *backward) previous() (line []byte, start int64, err error) {
	for {
		if len(b.buf) > 0 {
			i := bytes.LastIndexByte(b.buf[:len(b.buf)-1], '\n')
			if i >= 0 || b.pos == 0 {
				line = b.buf[i+1:]
				b.buf = b.buf[:i+1]
				return line, b.pos + int64(i+1), nil
			}
		} else if b.pos == 0 {
			return nil, 0, io.EOF
		}
		if err := b.fill(); err != nil {
			return nil, 0, err
		}
	}
}
