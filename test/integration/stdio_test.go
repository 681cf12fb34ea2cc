package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// tailSizes lie around what pipes and buffers hold.
var tailSizes = []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20}

// counted is the first n bytes of "1\n2\n3\n…".
func counted(n int) string {
	var b strings.Builder
	for i := 1; b.Len() < n; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()[:n]
}

// TestOutputTails writes outputs of every size and ends at once: nothing of
// them is lost, wherever they go. Not for stock containerd, whose client throws
// away what it has not read at the exit.
func TestOutputTails(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	for _, size := range tailSizes {
		want := counted(size)
		script := []string{"sh", "-c", fmt.Sprintf("seq 1000000 | head -c %d; exit 42", size)}
		check := func(to, got string) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %d bytes of %d", to, len(got), size)
			}
		}
		r := d.Berth(t, append([]string{"run", "--rm", harness.Image}, script...)...)
		check("FIFO", r.Stdout)
		if r.Code != 42 {
			t.Errorf("exit code %d", r.Code)
		}

		id := d.ID(fmt.Sprintf("log%d", size))
		d.MustBerth(t, append([]string{"run", "-d", "--name", id, harness.Image}, script...)...)
		check("log", d.MustBerth(t, "logs", "-f", id))
		d.MustBerth(t, "rm", id)

		id = d.ID(fmt.Sprintf("file%d", size))
		file := filepath.Join(dir, id)
		d.MustCtr(t, append([]string{"run", "--detach", "--log-uri", "file://" + file, harness.Image, id}, script...)...)
		d.WaitTask(t, id)()
		remove(t, d, id) // with the task's end the file is complete
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		check("file", string(b))
	}
}

// TestOutputGiB sends 1 GiB through a client to a pipe.
func TestOutputGiB(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	cmd := exec.CommandContext(t.Context(), d.Programs.Berth, "run", "--rm", harness.Image, "head", "-c", fmt.Sprint(1<<30), "/dev/zero")
	cmd.Env, cmd.Dir = d.Env(), d.Dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, out)
	if err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil || n != 1<<30 {
		t.Errorf("%d bytes, %v: %s", n, err, stderr.String())
	}
}

// TestOutputGiBDetached sends 1 GiB and a last line to a file, and to a logger:
// with the end of the container nothing is missing, to the last byte.
func TestOutputGiBDetached(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	dir := t.TempDir()
	logger, count, file := filepath.Join(dir, "logger"), filepath.Join(dir, "count"), filepath.Join(dir, "file")
	script := fmt.Sprintf("#!/bin/sh\nexec 5>&-\n{ head -c %d | wc -c; cat; } <&3 >%s.new && mv %s.new %s\n", 1<<30, count, count, count)
	if err := os.WriteFile(logger, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, uri := range []string{"binary://" + logger, "file://" + file} {
		id := d.ID(fmt.Sprintf("big%d", i))
		d.MustCtr(t, "run", "--detach", "--log-uri", uri, harness.Image, id, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero; echo the end", 1<<30))
		if code := d.WaitTask(t, id)(); code != 0 {
			t.Errorf("%s: exit code %d", uri, code)
		}
		d.AwaitStatus(t, id, "STOPPED")
		remove(t, d, id)
	}
	harness.Await(t, time.Minute, "the logger's end", func() bool {
		_, err := os.Stat(count)
		return err == nil
	})
	if got, err := os.ReadFile(count); err != nil || string(got) != fmt.Sprintf("%d\nthe end\n", 1<<30) {
		t.Errorf("the logger had %q (%v)", got, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end := make([]byte, 8)
	if _, err := f.ReadAt(end, 1<<30); err != nil || string(end) != "the end\n" {
		t.Errorf("the file ends with %q (%v)", end, err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 1<<30+8 {
		t.Errorf("a file of %d bytes (%v)", st.Size(), err)
	}
}

// TestReaderNeverReturns leaves a container alone with a FIFO that nobody
// reads: it blocks when that is full, and can be ended and deleted.
func TestReaderNeverReturns(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("unread")
		dir := t.TempDir()
		// ctr opens its FIFOs, reads while it lives, and goes.
		d.MustCtr(t, "run", "--detach", "--mount", "type=bind,src="+dir+",dst=/host,options=rbind", harness.Image, id,
			"sh", "-c", "touch /host/begun; head -c 80000000000 /dev/zero; touch /host/ended; sleep 1000")
		harness.Await(t, 30*time.Second, "the container's start", func() bool { _, err := os.Stat(filepath.Join(dir, "begun")); return err == nil })
		d.MustCtr(t, "tasks", "kill", "--signal", "KILL", id)
		d.WaitTask(t, id)()
		if _, err := os.Stat(filepath.Join(dir, "ended")); err == nil {
			t.Error("80 GB went nowhere")
		}
		remove(t, d, id)
	})
}

// TestBackgroundChildHoldsOutput ends an exec whose child in the background has
// its output: neither the exit nor the delete waits for the child.
// Not for stock containerd, whose client waits for ever.
func TestBackgroundChildHoldsOutput(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	id := d.ID("busy")
	start(t, d, id)
	r := d.Berth(t, "exec", id, "sh", "-c", "sleep 1000 & echo out; exit 5")
	if r.Code != 5 || r.Stdout != "out\n" {
		t.Error(r)
	}
	if ps := d.MustBerth(t, "exec", id, "ps"); !strings.Contains(ps, "sleep 1000") {
		t.Errorf("the child is gone: %s", ps)
	}
	remove(t, d, id)
}
