package ociruntime_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// consoleSocket listens for one terminal. The path of a socket is short, so it
// has a directory of its own.
func consoleSocket(t *testing.T) (path string, accept func() *os.File) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pty")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(l) })
	if err := unix.Bind(l, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(l, 1); err != nil {
		t.Fatal(err)
	}
	return path, func() *os.File { return receive(t, l) }
}

// receive takes the terminal from the connection that is waiting by now.
func receive(t *testing.T, listener int) *os.File {
	t.Helper()
	conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, make([]byte, 256), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("no terminal was sent: %v", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("no terminal was sent: %v", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	pty := os.NewFile(uintptr(fds[0]), "pty")
	t.Cleanup(func() { pty.Close() })
	return pty
}

// readUntil reads a terminal up to a text, or to the end of its other side.
func readUntil(t *testing.T, pty *os.File, text string) string {
	t.Helper()
	var got bytes.Buffer
	if err := pty.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	for !bytes.Contains(got.Bytes(), []byte(text)) {
		chunk := make([]byte, 1024)
		n, err := pty.Read(chunk)
		got.Write(chunk[:n])
		if errors.Is(err, unix.EIO) {
			break
		}
		if err != nil {
			t.Fatalf("terminal: %v after %q", err, got.String())
		}
	}
	return got.String()
}

func checkTerminal(t *testing.T, b *bench) {
	size := &specs.Box{Height: 33, Width: 77}
	p := shell("stty size; sleep 1000")
	p.Terminal, p.ConsoleSize = true, size
	c := b.newBox(p)
	args := c.args()
	path, accept := consoleSocket(t)
	args.ConsoleSocket = path
	c.createWith(args)
	pty := accept()
	c.start()
	if got := readUntil(t, pty, "\n"); got != "33 77\r\n" {
		t.Errorf("terminal of init: %q", got)
	}

	p = shell("read line; echo got $line")
	p.Terminal = true
	exec := c.execArgs("tty", p)
	exec.ConsoleSocket, accept = consoleSocket(t)
	pid, err := c.Exec(ctx(t), exec)
	if err != nil {
		t.Fatal(err)
	}
	pty = accept()
	if _, err := pty.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, pty, "got hello\r\n")
	if got := reap(t, pid); got != 0 {
		t.Errorf("exit status is %d", got)
	}
}
