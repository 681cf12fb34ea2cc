package ociruntime

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxLogRead is how much of a log's end is searched for an error.
	maxLogRead = 64 << 10
	// maxLogFile is the size from which a log is emptied before the next call: a
	// health check that fails for ever must not fill the disk.
	maxLogFile = 1 << 20
	// maxMessage bounds the text of an error.
	maxMessage = 4 << 10
)

// logMark is the place in a log where the entries of one call begin.
type logMark struct {
	path   string
	offset int64
}

func markLog(path string) logMark {
	m := logMark{path: path}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return m
	}
	m.offset = info.Size()
	if m.offset > maxLogFile && os.Truncate(path, 0) == nil {
		m.offset = 0
	}
	return m
}

// entry is one line of a log. Other members and other types are of no interest.
type entry struct {
	Level string `json:"level"`
	Msg   string `json:"msg"`
}

// lastError returns the last error logged since the mark, or the last one that
// stderr has too, where there is one. Lines that are not entries are passed
// over: parts of them come from images and clients.
func (m logMark) lastError(stderr string) string {
	data := m.read()
	last := ""
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		var e entry
		if json.Unmarshal(line, &e) != nil {
			continue
		}
		msg := strings.TrimSpace(e.Msg)
		if msg == "" || e.Level != "error" && e.Level != "fatal" {
			continue
		}
		if last == "" || stderr == "" || strings.Contains(stderr, msg) || !strings.Contains(stderr, last) {
			last = msg
		}
	}
	return last
}

// read returns what was written after the mark, at most the last maxLogRead bytes.
func (m logMark) read() []byte {
	if m.path == "" {
		return nil
	}
	f, err := openLog(m.path, unix.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	from := m.offset
	if from > info.Size() {
		from = 0 // emptied meanwhile
	}
	from = max(from, info.Size()-maxLogRead)
	data, err := io.ReadAll(io.NewSectionReader(f, from, maxLogRead))
	if err != nil {
		return nil
	}
	return data
}

// mergeLog moves the entries of a call's own log to the container's, where
// people look for them, and removes it. Nothing depends on the copy.
func mergeLog(own, shared string) {
	data := logMark{path: own}.read()
	_ = os.Remove(own)
	if len(data) == 0 {
		return
	}
	markLog(shared)
	f, err := openLog(shared, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(data)
}

// openLog opens a regular file, and nothing else: no link, and no FIFO that
// would hold the caller.
func openLog(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = os.ErrInvalid
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// shorten cuts a text to maxMessage bytes. It keeps both ends: runtimes put the
// operation first and the cause last.
func shorten(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxMessage {
		return s
	}
	const mark = " … "
	head, tail := maxMessage/2-len(mark), len(s)-maxMessage/2
	for head > 0 && !utf8.RuneStart(s[head]) {
		head--
	}
	for tail < len(s) && !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + mark + s[tail:]
}
