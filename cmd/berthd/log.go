package main

import (
	"io"
	"log/slog"

	containerdlog "github.com/containerd/log"
)

// newLog makes the daemon's log and sends there what containerd's libraries
// log too.
func newLog(w io.Writer, cfg logConfig) (*slog.Logger, error) {
	level, err := parseLevel(cfg.Level)
	if err != nil {
		return nil, err
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if cfg.Format == "json" {
		handler = slog.NewJSONHandler(w, options)
	}
	log := slog.New(handler)
	// The bridge of the libraries' log ends at slog's default.
	slog.SetDefault(log)
	if err := containerdlog.SetLevel(level); err != nil {
		return nil, err
	}
	containerdlog.UseSlog()
	return log, nil
}
