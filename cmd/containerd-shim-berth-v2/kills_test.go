package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/task"
	"github.com/berthd/berth/task/tasktest"
	"github.com/berthd/berth/test/fakeoci/faketest"
	"github.com/berthd/berth/test/fakeoci/fault"
)

// TestShimKilledInDelete kills the shim while the runtime deletes, before and
// after it has done so: the next shim ends what was begun.
func TestShimKilledInDelete(t *testing.T) {
	d := newDaemon(t)
	s, _ := d.guarded()
	r := d.remote(s, v3, faketest.Binary(t))
	root := filepath.Join(s.root, "ns")
	for _, at := range []fault.Point{fault.Before, fault.After} {
		id := "c-" + string(at)
		c := r.make(t, id, "exit 8", true)
		if _, err := c.Wait(ctx(t)); err != nil {
			t.Fatal(err)
		}
		faketest.Order(t, root, fault.Rule{Op: "delete", ID: id, At: at, Action: "hang", Times: 1})
		broken := make(chan error, 1)
		go func() {
			_, err := c.Delete(ctx(t))
			broken <- err
		}()
		await(t, "the delete", func() bool { return faketest.Hits(t, root, 0) == 1 })
		if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-broken; err == nil {
			t.Error("the delete that was killed succeeded")
		}
		r.reconnect()
		if err := r.checkExit(c, id, 8); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(root, "c-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the runtime has %v left (%v)", left, err)
	}
	await(t, "events of the deletes", func() bool { return len(r.Events()) == 8 })
	tasktest.CheckEvents(t, r.Events())
}

// TestShimKilledAgainAndAgain kills the shim 50 to 450 ms after it serves, while
// clients work: each gets the exact end of all that it ran, every event comes
// once and in order, and nothing is left.
func TestShimKilledAgainAndAgain(t *testing.T) {
	d := newDaemon(t)
	s, _ := d.guarded()
	r := d.remote(s, v3, faketest.Binary(t))
	lasting := r.make(t, "lasting", tasktest.Forever, true)
	var clients sync.WaitGroup
	stop := make(chan struct{})
	lives := 0
	var mu sync.Mutex
	for n := range 4 {
		clients.Go(func() {
			w := &stubborn{remote: d.client(t, s, r)}
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.live(fmt.Sprintf("c%d-%d", n, i), uint32(n*50+i%50)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				lives++
				mu.Unlock()
			}
		})
	}
	const kills = 8 // the guard waits twice as long after each
	for range kills {
		time.Sleep(time.Duration(50+rand.IntN(400)) * time.Millisecond)
		pid := s.pid
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.reconnect()
	}
	close(stop)
	clients.Wait()
	t.Logf("%d containers and as many execs lived through %d kills", lives, kills)
	if err := lasting.Kill(ctx(t), unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if err := r.checkExit(lasting, "lasting", 137); err != nil {
		t.Error(err)
	}
	r.noZombies(t)
	await(t, "the last event", func() bool {
		all := r.Events()
		return all[len(all)-1].Kind == task.EventDelete && all[len(all)-1].ID.Container == "lasting"
	})
	checker := tasktest.EventChecker{}
	for _, e := range r.Events() {
		checker.Add(e)
	}
	for _, problem := range append(checker.Problems(), checker.Unfinished()...) {
		t.Error(problem)
	}
	members, err := os.ReadDir(filepath.Join(d.dir, "group", "ns", "g", "members"))
	if err != nil || len(members) > 0 {
		t.Errorf("members %v (%v) are left", members, err)
	}
}

// client is a connection of its own to the same shim.
func (d *daemon) client(t *testing.T, s *served, of *remote) *remote {
	own := *s
	own.Client = nil
	r := &remote{daemon: d, shim: &own, service: v3, options: of.options, ids: map[string]bool{}}
	t.Cleanup(func() {
		if own.Client != nil {
			own.Close()
		}
	})
	return r
}

// stubborn asks again whenever the shim dies.
type stubborn struct{ *remote }

// try asks until the answer is the shim's. broken: an earlier try may have
// done what was asked.
func (w *stubborn) try(fn func(context.Context) error) (broken bool, err error) {
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if w.shim.Client == nil {
			conn, err := net.Dial("unix", w.shim.socket)
			if err != nil {
				return broken, err
			}
			w.shim.Client = ttrpc.NewClient(conn)
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err = fn(ctx)
		cancel()
		if err == nil || !errors.Is(err, ttrpc.ErrClosed) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) &&
			!strings.Contains(err.Error(), "ttrpc: closed") {
			return broken, err
		}
		w.shim.Close()
		w.shim.Client, broken = nil, true
	}
	return broken, fmt.Errorf("no answer: %w", err)
}

// live is a container from create to delete with one exec.
func (w *stubborn) live(id string, status uint32) error {
	cfg := w.Config(w.t, id, "while [ ! -e "+filepath.Join(w.dir, id, "end")+" ]; do sleep 0.01; done; exit "+strconv.Itoa(int(status)))
	if _, err := w.try(func(ctx context.Context) error {
		_, err := w.Create(ctx, w.id(id), cfg)
		return err
	}); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("create %s: %w", id, err)
	}
	c := w.task(id)
	broken, err := w.try(func(ctx context.Context) error {
		_, err := c.Start(ctx)
		return err
	})
	if err != nil && !(broken && errdefs.IsFailedPrecondition(err)) {
		return fmt.Errorf("start %s: %w", id, err)
	}
	err = w.exec(c, status)
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, id, "end"), nil, 0o600)
	}
	if err == nil {
		err = w.end(c, status)
	}
	if err != nil && broken && w.ended(c) {
		// The runtime was killed half-way through the start: then the process may
		// end before it is the container's program.
		return w.remove(c)
	}
	return err
}

// ended waits for the end of a container.
func (w *stubborn) ended(c remoteTask) bool {
	_, err := w.try(func(ctx context.Context) error {
		_, err := c.Wait(ctx)
		return err
	})
	return err == nil
}

// exec runs a process. The start that the shim's death broke off may have
// failed: then it has status 255.
func (w *stubborn) exec(c remoteTask, status uint32) error {
	var p task.Process
	if broken, err := w.try(func(ctx context.Context) (err error) {
		p, err = c.Exec(ctx, "e", w.Exec(w.t, "exit "+strconv.Itoa(int(status))))
		return err
	}); err != nil && !(broken && errdefs.IsAlreadyExists(err)) {
		return fmt.Errorf("exec in %s: %w", c.container, err)
	}
	broken, err := w.try(func(ctx context.Context) error {
		_, err := p.Start(ctx)
		return err
	})
	if err != nil && !broken {
		return fmt.Errorf("start of the exec in %s: %w", c.container, err)
	}
	var exit task.Exit
	if _, err := w.try(func(ctx context.Context) (err error) {
		exit, err = p.Wait(ctx)
		return err
	}); err != nil || exit.Status != status && !(broken && exit.Status == 255) {
		return fmt.Errorf("exec in %s: %+v (%w), want %d; broken: %t", c.container, exit, err, status, broken)
	}
	return w.remove(p)
}

func (w *stubborn) end(c remoteTask, status uint32) error {
	var exit task.Exit
	if _, err := w.try(func(ctx context.Context) (err error) {
		exit, err = c.Wait(ctx)
		return err
	}); err != nil || exit.Status != status {
		return fmt.Errorf("wait for %s: %+v (%w), want %d", c.container, exit, err, status)
	}
	return w.remove(c)
}

func (w *stubborn) remove(p task.Process) error {
	broken, err := w.try(func(ctx context.Context) error {
		_, err := p.Delete(ctx)
		return err
	})
	if err != nil && !(broken && errdefs.IsNotFound(err)) {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}
