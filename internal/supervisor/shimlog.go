package supervisor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
)

// maxLogLine is the longest line of a shim's log that is kept whole.
const maxLogLine = 8 << 10

// copyLog passes a shim's log on, line by line, until f is closed. It always
// reads: a shim must not be held up by its log.
func copyLog(log *slog.Logger, f *os.File) {
	r := bufio.NewReaderSize(f, maxLogLine)
	for {
		line, err := r.ReadSlice('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			log.Log(context.Background(), logLevel(line), string(line))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// logLevel finds the level in a line as logrus and slog write it; without one
// the line is information.
func logLevel(line []byte) slog.Level {
	_, rest, ok := bytes.Cut(line, []byte("level"))
	if !ok {
		return slog.LevelInfo
	}
	rest = bytes.TrimLeft(rest, `=:" `)
	for prefix, level := range map[string]slog.Level{
		"trace": slog.LevelDebug, "debug": slog.LevelDebug, "warn": slog.LevelWarn,
		"error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
	} {
		if len(rest) >= len(prefix) && bytes.EqualFold(rest[:len(prefix)], []byte(prefix)) {
			return level
		}
	}
	return slog.LevelInfo
}
