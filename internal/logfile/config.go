// Package logfile writes and reads the output of containers as a log: a file of
// JSON lines that is rotated by size.
//
// A line is one [Record], in the form of Docker's json-file: text, stream and
// time. The text ends with a line break where the container's line does; a
// record whose text does not is continued by the next one of the same stream.
//
// The file at the path is the newest. Rotation renames it to PATH.1, that one
// to PATH.2, and so on; the oldest is removed. Nothing is ever written to a
// file that was renamed, so who reads one sees all of it.
package logfile

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Scheme of the URI that stands for a log.
const Scheme = "json-file"

const (
	// MaxText bounds the text of a record; a longer line is cut into several.
	MaxText = 16 << 10
	// maxFiles bounds what a client may ask for: each rotation renames them all.
	maxFiles = 1000
)

// Lost is the stream of the records that the writer makes itself: they say how
// much output could not be stored. A container cannot write to it.
const Lost = "berth"

// Record is a line of the log.
type Record struct {
	// Text may have any bytes when it is written; those that are not UTF-8 are
	// stored as U+FFFD.
	Text   string    `json:"log"`
	Stream string    `json:"stream"` // stdout, stderr or [Lost]
	Time   time.Time `json:"time"`
}

// Config says where a log is and how large it may become.
type Config struct {
	Path string
	// MaxSize is when the file is rotated, in bytes. 0: never.
	MaxSize int64
	// MaxFiles is how many files there may be, the newest one included. 0 is 1:
	// a file that is full is removed.
	MaxFiles int
}

// URI is the config as a client names it for a stream of a task:
// json-file:///PATH?max-size=BYTES&max-file=N.
func (c Config) URI() string {
	u := url.URL{Scheme: Scheme, Path: c.Path}
	q := url.Values{}
	if c.MaxSize > 0 {
		q.Set("max-size", strconv.FormatInt(c.MaxSize, 10))
	}
	if c.MaxFiles > 0 {
		q.Set("max-file", strconv.Itoa(c.MaxFiles))
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// Parse reads a URI. What it does not understand is InvalidArgument.
func Parse(uri string) (Config, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != Scheme {
		return Config{}, invalid(uri, "it is not a URI with the scheme "+Scheme)
	}
	c := Config{Path: filepath.Clean(u.Path), MaxFiles: 1}
	switch {
	case u.Host != "" || u.Opaque != "" || u.User != nil || u.Fragment != "":
		return Config{}, invalid(uri, "only a path and a query may follow "+Scheme+"://")
	case !filepath.IsAbs(c.Path) || c.Path == "/" || strings.ContainsRune(c.Path, 0) || len(c.Path)+len(".1000") >= unix.PathMax:
		return Config{}, invalid(uri, "the path must be absolute, without NUL bytes and not too long")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, invalid(uri, err.Error())
	}
	for key, values := range q {
		n, err := strconv.ParseInt(values[0], 10, 64)
		switch {
		case key != "max-size" && key != "max-file":
			return Config{}, invalid(uri, fmt.Sprintf("there is no option %q; use max-size (bytes) and max-file (a count)", key))
		case err != nil || n < 1 || len(values) > 1 || key == "max-file" && n > maxFiles:
			return Config{}, invalid(uri, fmt.Sprintf("%s: want one number from 1 (max-file: to %d)", key, maxFiles))
		case key == "max-size":
			c.MaxSize = n
		default:
			c.MaxFiles = int(n)
		}
	}
	return c, nil
}

func invalid(uri, why string) error {
	return fmt.Errorf("log %q: %s: %w", uri, why, errdefs.ErrInvalidArgument)
}

// rotated is the path of a file that was rotated n times.
func rotated(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// parseRecord reads a line of the log.
func parseRecord(line []byte) (Record, bool) {
	var r Record
	err := json.Unmarshal(line, &r)
	return r, err == nil && r.Stream != ""
}
