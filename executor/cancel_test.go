package executor_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	bk "github.com/moby/buildkit/executor"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/test/harness"
)

var errStop = errors.New("nobody wants this any more")

// A cancelled step is dead, all of it, when Run returns, and says so.
func TestCancel(t *testing.T) {
	t.Parallel()
	ours(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		// Programs that do not care for signals, in sessions of their own.
		b := l.start(t, root, sh("trap '' TERM INT HUP; for i in 1 2 3; do (trap '' TERM; while :; do echo tick >> /log; sleep 0.02; done) & done; wait"))
		ended := make(chan error, 1)
		go func() { // an exec goes with its step
			ended <- l.exec(context.Background(), b.id, bk.Meta{Args: []string{"/bin/sleep", "1000"}}, "").failed
		}()
		harness.Await(t, limit, "the step's programs", func() bool { return size(root, "log") > 0 })
		b.stop(errStop)
		<-b.ended
		after := size(root, "log")
		if !errors.Is(b.err, errStop) {
			t.Errorf("%v does not wrap the cause", b.err)
		}
		contains(t, "what was done", b.err.Error(), "exit code: 137: killed all processes of the step, which ended within ")
		if err := <-ended; err == nil {
			t.Error("exec outlives its step")
		}
		equal(t, "bytes written after the end", size(root, "log"), after)
	})
}

func size(root, name string) int64 {
	st, err := os.Stat(filepath.Join(root, name))
	if err != nil {
		return 0
	}
	return st.Size()
}

// An exec can be cancelled alone.
func TestCancelExec(t *testing.T) {
	t.Parallel()
	ours(t, executor.Config{}, func(t *testing.T, l *lab) {
		b := l.start(t, rootfs(t), sh("while :; do sleep 0.1; done"))
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan result, 1)
		go func() {
			ended <- l.exec(ctx, b.id, sh("echo > /running; sleep 1000"), "")
		}()
		harness.Await(t, limit, "the exec", func() bool {
			return l.exec(t.Context(), b.id, sh("test -e /running"), "").failed == nil
		})
		cancel(errStop)
		r := <-ended
		if !errors.Is(r.failed, errStop) {
			t.Errorf("%v does not wrap the cause", r.failed)
		}
		contains(t, "what was done", r.failed.Error(), "exit code: 137: killed the process")
		if r := l.exec(t.Context(), b.id, sh("echo alive"), ""); r.out != "alive\n" {
			t.Errorf("the step went with its exec: %v", r.failed)
		}
	})
}

// Whenever a step is cancelled, nothing is left of it.
func TestCancelAnytime(t *testing.T) {
	t.Parallel()
	ours(t, executor.Config{}, func(t *testing.T, l *lab) {
		root := rootfs(t)
		ctx := namespaces.WithNamespace(t.Context(), l.namespace)
		whole := time.Now()
		l.must(t, root, sh("sleep 0.05"))
		span := time.Since(whole)
		var cancelled int
		for range 50 {
			ctx, cancel := context.WithCancelCause(ctx)
			timer := time.AfterFunc(rand.N(span), func() { cancel(errStop) })
			r := l.run(ctx, root, sh("sleep 0.05"))
			timer.Stop()
			cancel(nil)
			switch {
			case r.failed == nil:
			case errors.Is(r.failed, errStop):
				cancelled++
			default:
				t.Errorf("cancelled step: %v", r.failed)
			}
		}
		t.Logf("%d of 50 steps were cancelled before they ended", cancelled)
		l.must(t, root, sh("true"))
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	cfg := executor.Config{Limits: executor.Limits{Memory: 64 << 20, PIDs: 20, CPUs: 1.5, Time: 20 * time.Second}}
	ours(t, cfg, func(t *testing.T, l *lab) {
		root := rootfs(t)
		r := l.run(t.Context(), root, sh("tail /dev/zero")) // keeps its input in memory
		if !errors.Is(r.failed, syscall.ENOMEM) {
			t.Errorf("no memory: %v", r.failed)
		} else {
			contains(t, "no memory", r.failed.Error(), "for lack of memory (the limit for a step is 67108864 bytes)")
		}
		r = l.run(t.Context(), root, sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; do sleep 1 & done; wait"))
		if r.failed == nil || !strings.Contains(r.err, "can't fork") {
			t.Errorf("22 processes of at most 20: %v, %q", r.failed, r.err)
		}
		lower := sh("tail /dev/zero")
		lower.LinuxResources = &pb.LinuxResources{Memory: 16 << 20}
		if r := l.run(t.Context(), root, lower); !errors.Is(r.failed, syscall.ENOMEM) {
			t.Errorf("no memory of the step's own limit: %v", r.failed)
		}
		r = l.run(t.Context(), root, sh("dd if=/dev/zero of=/data bs=1M count=4; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"))
		if r.failed != nil {
			t.Fatal(r.failed)
		}
		s, err := r.rec.Samples()
		if err != nil || len(s.Samples) == 0 {
			t.Fatalf("no samples: %v", err)
		}
		last := s.Samples[len(s.Samples)-1]
		if *last.CPUStat.UsageNanos == 0 || *last.MemoryStat.Peak == 0 || last.PIDsStat == nil || s.SysCPUStat == nil {
			t.Errorf("last sample is empty: %+v", last)
		}
	})
}

func TestTimeLimit(t *testing.T) {
	t.Parallel()
	ours(t, executor.Config{Limits: executor.Limits{Time: time.Second}}, func(t *testing.T, l *lab) {
		r := l.run(t.Context(), rootfs(t), sh("sleep 1000"))
		if r.failed == nil {
			t.Fatal("a step of 1000 s keeps within its second")
		}
		contains(t, "time limit", r.failed.Error(), "the step ran longer than its limit of 1s")
	})
}

// A process that a program leaves behind does not hold up its exec, and the
// output until then is whole.
func TestExecLeavesProcess(t *testing.T) {
	t.Parallel()
	l := daemonLab(t, harness.Berth, executor.Config{})
	b := l.start(t, rootfs(t), sh("while :; do sleep 0.1; done"))
	r := l.exec(t.Context(), b.id, sh("sleep 1000 & echo done"), "")
	if r.failed != nil || r.out != "done\n" {
		t.Errorf("%q, %v", r.out, r.failed)
	}
}

// A step goes on while its daemon is dead, and its end is told by the next one;
// one that is cancelled meanwhile is killed then.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	l := newLab(t, d.Client(t), executor.Config{Root: filepath.Join(d.State, "executor"), Namespace: d.Namespace, KillTimeout: limit})
	root := rootfs(t)
	until := sh("while ! test -e /go; do sleep 0.02; done; echo went on; exit 3")
	b := l.start(t, root, until)
	cancelled := l.start(t, rootfs(t), until)
	d.Kill(t)
	write(t, root, "go", "")
	cancelled.stop(errStop)
	d.Boot(t)
	<-b.ended
	<-cancelled.ended
	if exit, ok := errors.AsType[*gatewayapi.ExitError](b.err); !ok || exit.ExitCode != 3 {
		t.Errorf("exit code 3 is %v", b.err)
	}
	equal(t, "output", b.out.String(), "went on\n")
	if !errors.Is(cancelled.err, errStop) {
		t.Errorf("%v does not wrap the cause", cancelled.err)
	}
	contains(t, "cancelled step", cancelled.err.Error(), "exit code: 137: killed all processes")
	l.must(t, root, sh("true"))
}
