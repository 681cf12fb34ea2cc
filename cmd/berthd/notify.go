package main

import (
	"fmt"
	"net"
	"os"
)

// notifier tells systemd how the daemon is.
type notifier struct {
	address *net.UnixAddr // nil when nobody wants to know
}

// newNotifier takes the address out of the environment, so that shims do not
// speak for the daemon.
func newNotifier() (*notifier, error) {
	const variable = "NOTIFY_SOCKET"
	path := os.Getenv(variable)
	if path == "" {
		return &notifier{}, nil
	}
	if err := os.Unsetenv(variable); err != nil {
		return nil, fmt.Errorf("unset %s: %w", variable, err)
	}
	// Go takes a leading "@" for the abstract name space, as systemd does.
	return &notifier{address: &net.UnixAddr{Name: path, Net: "unixgram"}}, nil
}

// tell sends a state ("READY=1").
func (n *notifier) tell(state string) error {
	if n.address == nil {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, n.address)
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		_ = conn.Close()
		return fmt.Errorf("notify systemd: %w", err)
	}
	return conn.Close()
}
