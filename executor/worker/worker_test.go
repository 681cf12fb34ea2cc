package worker_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bkclient "github.com/moby/buildkit/client"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/worker/tests"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/executor"
	"github.com/berthd/berth/test/harness"
)

// BuildKit's own suite for workers.
func TestPublishedSuite(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *lab){
		"exec":     func(t *testing.T, l *lab) { tests.TestWorkerExec(t, l.worker.Worker) },
		"failures": func(t *testing.T, l *lab) { tests.TestWorkerExecFailures(t, l.worker.Worker) },
		"cancel":   func(t *testing.T, l *lab) { tests.TestWorkerCancel(t, l.worker.Worker) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, executor.Limits{})
			test(t, l)
			if err := l.worker.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// dockerfile has ten steps; each leaves in a file what it found.
const dockerfile = `FROM IMAGE AS base
COPY hello.txt /in/hello.txt
RUN cat /in/hello.txt > /in/copied
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /in/secret; ls /run/secrets
RUN --mount=type=tmpfs,target=/scratch grep -q ' /scratch tmpfs ' /proc/mounts && echo yes > /in/tmpfs
RUN --mount=type=cache,target=/cache echo line >> /cache/f && wc -l < /cache/f > /in/cache
RUN --mount=type=bind,source=hello.txt,target=/bound/it cat /bound/it > /in/bound
RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo yes > /in/ssh
RUN --network=none ls /sys/class/net > /in/none
USER app
RUN id -u > /tmp/uid && if touch /in/forbidden 2>/dev/null; then exit 1; fi

FROM IMAGE AS one
RUN echo one > /one
FROM IMAGE AS two
RUN echo two > /two

FROM scratch
COPY --from=base /in /tmp/uid /out/
COPY --from=one /one /out/
COPY --from=two /two /out/
`

func TestBuild(t *testing.T) {
	l := newLab(t, executor.Limits{})
	l.serve(t)
	agent := withSSH(t)
	dir, log, err := l.build(t.Context(), t, dockerfile, agent)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	for name, want := range map[string]string{
		"copied": "hello build", "secret": "6", "tmpfs": "yes", "cache": "1", "bound": "hello build",
		"ssh": "yes", "none": "lo", "uid": "1000", "one": "one", "two": "two",
	} {
		got, err := os.ReadFile(filepath.Join(dir, "out", name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if _, log, err = l.build(t.Context(), t, dockerfile, agent); err != nil || strings.Count(log, "cached=true") < 12 {
		t.Errorf("second build is not from the cache: %v\n%s", err, log)
	}
}

// withSSH gives a build an agent with a key of its own.
func withSSH(t *testing.T) func(*bkclient.SolveOpt) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: &key}); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	go func() { // ends with the socket
		for {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(keys, c) }() // ends with the connection
		}
	}()
	p, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "default", Paths: []string{socket.Addr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *bkclient.SolveOpt) { o.Session = append(o.Session, p) }
}

func TestBuildFails(t *testing.T) {
	l := newLab(t, executor.Limits{Memory: 64 << 20})
	l.serve(t)
	_, log, err := l.build(t.Context(), t, "FROM IMAGE\nRUN exit 42\n")
	if exit, ok := errors.AsType[*gatewayapi.ExitError](err); !ok || exit.ExitCode != 42 {
		t.Errorf("exit code 42 is %v\n%s", err, log)
	}
	_, log, err = l.build(t.Context(), t, "FROM IMAGE\nRUN tail /dev/zero\n")
	if err == nil || !strings.Contains(err.Error(), "for lack of memory (the limit for a step is 67108864 bytes)") {
		t.Errorf("no memory: %v\n%s", err, log)
	}
}

func TestBuildCancelled(t *testing.T) {
	l := newLab(t, executor.Limits{})
	l.serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, _, err := l.build(ctx, t, "FROM IMAGE\nRUN sleep 8642 & sleep 8642\n")
		ended <- err
	}()
	harness.Await(t, time.Minute, "the step", func() bool { return len(running("8642")) >= 2 })
	cancel()
	if err := <-ended; err == nil {
		t.Error("a cancelled build succeeds")
	}
	harness.Await(t, time.Minute, "the end of the step", func() bool { return len(running("8642")) == 0 })
}

// running lists processes whose last argument is this.
func running(argument string) []string {
	var found []string
	pids, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, p := range pids {
		if b, err := os.ReadFile(p); err == nil && strings.HasSuffix(string(b), "sleep\x00"+argument+"\x00") {
			found = append(found, p)
		}
	}
	return found
}

// Fifty builds at once, each with a step of its own that fails or not.
func TestBuildsAtOnce(t *testing.T) {
	l := newLab(t, executor.Limits{})
	l.serve(t)
	var all errgroup.Group
	for i := range 50 {
		all.Go(func() error {
			dir, log, err := l.build(t.Context(), t, fmt.Sprintf("FROM IMAGE AS b\nRUN echo %d > /n\nFROM scratch\nCOPY --from=b /n /n\n", i))
			if err != nil {
				return fmt.Errorf("%w\n%s", err, log)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "n")); err != nil || string(got) != fmt.Sprintf("%d\n", i) {
				return fmt.Errorf("build %d: %q, %w", i, got, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}
