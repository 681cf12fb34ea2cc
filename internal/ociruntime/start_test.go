package ociruntime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/fakeoci/faketest"
)

// logged puts a script in front of a runtime that notes every call.
func (b *bench) logged() (calls func() string) {
	b.t.Helper()
	log := filepath.Join(b.dir, "calls")
	script := filepath.Join(b.dir, "runtime")
	text := fmt.Sprintf("#!/bin/sh\necho \" $* \" >> %s\nexec %s \"$@\"\n", log, b.Binary)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.Binary = script
	return func() string {
		data, err := os.ReadFile(log)
		if err != nil {
			b.t.Fatal(err)
		}
		return string(data)
	}
}

// With runc the start is done without a call; the runtime agrees that the
// container runs.
func TestStartWithoutACall(t *testing.T) {
	b := newBench(t, subjects[1])
	calls := b.logged()
	c := b.newBox(faketest.Process("/bin/sh", "-c", "exec sleep 100"))
	c.create()
	if err := c.Start(ctx(t), c.id); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(calls(), " start ") {
		t.Errorf("the runtime was called:\n%s", calls())
	}
	if _, err := os.Stat(filepath.Join(b.Root, c.id, "exec.fifo")); !os.IsNotExist(err) {
		t.Errorf("runc's FIFO: %v", err)
	}
	st, err := c.State(ctx(t), c.id)
	if err != nil || st.Status != "running" {
		t.Errorf("state %q, %v", st.Status, err)
	}
	if err := c.Start(ctx(t), c.id); err == nil {
		t.Error("a second start succeeded")
	}
}

// An init that has ended is no start; the runtime's own words say so.
func TestStartOfAnEndedInit(t *testing.T) {
	b := newBench(t, subjects[1])
	calls := b.logged()
	c := b.newBox(faketest.Process("/bin/sh", "-c", "exec sleep 100"))
	c.create()
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx(t), c.id); err == nil {
		t.Fatal("started")
	}
	if !strings.Contains(calls(), " start ") {
		t.Errorf("the runtime was not asked:\n%s", calls())
	}
}

// A runtime that has such a FIFO and is not runc gets the call.
func TestStartOfAnotherRuntime(t *testing.T) {
	b := newBench(t, subjects[0])
	calls := b.logged()
	c := b.newBox(faketest.Process("/bin/sh", "-c", "exit 0"))
	c.create()
	if _, err := os.Stat(filepath.Join(b.Root, c.id, "exec.fifo")); err != nil {
		t.Fatalf("the fake has such a FIFO too: %v", err)
	}
	if err := c.Start(ctx(t), c.id); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(calls(), " start ") {
		t.Errorf("the runtime was not called:\n%s", calls())
	}
}
