// Package load puts many clients on a daemon at once, on all services, and
// looks for errors and for what grows. In make test it is short; make load runs
// it for a minute and with ten thousand records.
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/streaming/proxy"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/test/harness"
)

// clients is how many there are at once; one in runners runs containers.
const (
	clients = 64
	runners = 16
)

// setting reads a number of the environment.
func setting(t *testing.T, name string, value int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return value
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// user is one client.
type user struct {
	*client.Client
	name  string
	image client.Image
	rounds
}

// rounds counts.
type rounds struct{ n int }

func (r *rounds) next() string {
	r.n++
	return strconv.Itoa(r.n)
}

// step uses one service after the other, and takes away what it made.
func (u *user) step(ctx context.Context) error {
	id := u.name + "-" + u.next()
	steps := []struct {
		what string
		do   func(context.Context, string) error
	}{
		{"content", u.content},
		{"images and transfer", u.images},
		{"containers", u.containers},
		{"snapshots", u.snapshots},
		{"namespaces", u.namespaces},
		{"events", u.events},
		{"introspection", u.introspection},
		{"sandboxes", u.sandboxes},
		{"diff", u.diff},
		{"mounts", u.mounts},
	}
	s := steps[u.n%len(steps)]
	ctx, done, err := u.WithLease(ctx)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if err := s.do(ctx, id); err != nil {
		err = fmt.Errorf("%s: %w", s.what, err)
		return errors.Join(err, done(context.WithoutCancel(ctx)))
	}
	return done(ctx)
}

func (u *user) content(ctx context.Context, id string) error {
	data := bytes.Repeat([]byte(id+"\n"), 500)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	cs := u.ContentStore()
	if err := content.WriteBlob(ctx, cs, id, bytes.NewReader(data), desc); err != nil {
		return err
	}
	if got, err := content.ReadBlob(ctx, cs, desc); err != nil || !bytes.Equal(got, data) {
		return fmt.Errorf("read %d of %d bytes: %w", len(got), len(data), err)
	}
	if _, err := cs.Update(ctx, content.Info{Digest: desc.Digest, Labels: map[string]string{"k": id}}, "labels.k"); err != nil {
		return err
	}
	return cs.Delete(ctx, desc.Digest)
}

func (u *user) images(ctx context.Context, id string) error {
	name := "berth.test/" + id + ":1"
	// Through the transfer service, and its streams.
	if err := u.Transfer(ctx, image.NewStore(u.image.Name()), image.NewStore(name)); err != nil {
		return err
	}
	list, err := u.ImageService().List(ctx, "name=="+name)
	if err != nil || len(list) != 1 {
		return fmt.Errorf("list: %d images: %w", len(list), err)
	}
	return u.ImageService().Delete(ctx, name)
}

func (u *user) containers(ctx context.Context, id string) error {
	c, err := u.NewContainer(ctx, id, client.WithNewSpec(), client.WithAdditionalContainerLabels(map[string]string{"user": u.name}))
	if err != nil {
		return err
	}
	list, err := u.Containers(ctx, `labels.user==`+u.name)
	if err != nil || len(list) != 1 {
		return fmt.Errorf("list: %d containers: %w", len(list), err)
	}
	return c.Delete(ctx)
}

func (u *user) snapshots(ctx context.Context, id string) error {
	sn := u.SnapshotService("overlayfs")
	if _, err := sn.Prepare(ctx, id, ""); err != nil {
		return err
	}
	if _, err := sn.Usage(ctx, id); err != nil {
		return err
	}
	return sn.Remove(ctx, id)
}

func (u *user) namespaces(ctx context.Context, _ string) error {
	_, err := u.NamespaceService().Labels(ctx, u.name)
	return err
}

func (u *user) events(ctx context.Context, id string) error {
	return u.EventService().Publish(ctx, "/load/round", &eventsapi.ContainerDelete{ID: id})
}

func (u *user) introspection(ctx context.Context, _ string) error {
	if _, err := u.IntrospectionService().Plugins(ctx); err != nil {
		return err
	}
	if _, err := u.Version(ctx); err != nil {
		return err
	}
	if ok, err := u.IsServing(ctx); err != nil || !ok {
		return fmt.Errorf("health: %v: %w", ok, err)
	}
	_, err := u.TaskService().List(ctx, nil)
	return err
}

func (u *user) sandboxes(ctx context.Context, id string) error {
	store := u.SandboxStore()
	if _, err := store.Create(ctx, sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: "x"}, Sandboxer: "shim"}); err != nil {
		return err
	}
	return store.Delete(ctx, id)
}

func (u *user) diff(ctx context.Context, id string) error {
	sn := u.SnapshotService("overlayfs")
	lower, err := sn.View(ctx, id+"-view", "")
	if err != nil {
		return err
	}
	if _, err := u.DiffService().Compare(ctx, lower, lower); err != nil {
		return err
	}
	return sn.Remove(ctx, id+"-view")
}

func (u *user) mounts(ctx context.Context, _ string) error {
	_, err := u.MountManager().List(ctx)
	return err
}

// run runs a container.
func (u *user) run(ctx context.Context) (err error) {
	id := u.name + "-run" + u.next()
	c, err := u.NewContainer(ctx, id, client.WithNewSnapshot(id, u.image), client.WithNewSpec(oci.WithImageConfig(u.image), oci.WithProcessArgs("true")))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Delete(context.WithoutCancel(ctx), client.WithSnapshotCleanup)) }()
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	exited, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err == nil {
		if e := <-exited; e.Error() != nil || e.ExitCode() != 0 {
			err = fmt.Errorf("exit code %d: %w", e.ExitCode(), e.Error())
		}
	}
	if err != nil {
		err = fmt.Errorf("run: %w", err)
	}
	_, derr := task.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
	return errors.Join(err, derr)
}

// goroutines asks the daemon's debug socket.
func goroutines(t *testing.T, socket string) int {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get("http://d/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscanf(string(data), "goroutine profile: total %d", &n); err != nil {
		t.Fatalf("%v: %.80s", err, data)
	}
	return n
}

func resident(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

// Many clients use all services for a while. Among them are subscribers that
// never read and streams whose clients vanish. There is no error, and nothing
// is more afterwards than before.
func TestManyClients(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "debug")
	// In memory, so that it is the daemon that is loaded, not the disk.
	d := harness.Start(t, harness.Config{RootSize: 512 << 20, Toml: "[debug]\naddress = " + strconv.Quote(socket) + "\n"})
	length := time.Duration(setting(t, "BERTH_LOAD_SECONDS", 4)) * time.Second
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), length+5*time.Minute)
	defer cancel()
	warm := newUser(ctx, t, d, "warm")
	for range 20 {
		if err := warm.step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := warm.run(ctx); err != nil {
		t.Fatal(err)
	}
	before, rss := goroutines(t, socket), resident(t, d.PID())

	var wg sync.WaitGroup
	var done, ran atomic.Int64
	stop := time.Now().Add(length)
	for i := range clients {
		u := newUser(ctx, t, d, fmt.Sprintf("u%d", i))
		u.n = i // they are at different services
		deaf(ctx, t, u, i)
		wg.Go(func() {
			defer u.Close()
			for time.Now().Before(stop) && !t.Failed() {
				err := u.step(ctx)
				if err == nil && i%(clients/runners) == 0 {
					err = u.run(ctx)
					ran.Add(1)
				}
				if err != nil {
					t.Errorf("%s: %v", u.name, err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if err := warm.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("%d uses of a service and %d containers in %v by %d clients", done.Load(), ran.Load(), length, clients)
	after := 0
	harness.Poll(time.Minute, func() bool { after = goroutines(t, socket); return after <= before })
	t.Logf("goroutines: %d, then %d; memory: %s, then %s", before, after, rss, resident(t, d.PID()))
	if after > before {
		t.Errorf("%d goroutines of the daemon, %d before the load", after, before)
	}
}

func newUser(ctx context.Context, t *testing.T, d *harness.Daemon, name string) *user {
	t.Helper()
	c, err := client.New(d.Address, client.WithDefaultNamespace(d.Namespace), client.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // most have done so
	img, err := c.GetImage(ctx, harness.Image)
	if err != nil {
		t.Fatal(err)
	}
	return &user{Client: c, name: name, image: img}
}

// deaf makes every eighth client subscribe to all events and read none, and
// another eighth open a stream that nobody closes; both vanish with their
// connections.
func deaf(ctx context.Context, t *testing.T, u *user, i int) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	switch i % 8 {
	case 1:
		u.EventService().Subscribe(ctx) // its channel is never read
	case 2:
		if _, err := proxy.NewStreamCreator(u.Conn()).Create(ctx, "vanishing-"+u.name); err != nil {
			t.Fatal(err)
		}
	}
}

// Messages as large as the API takes go through, larger ones are refused and
// cost nobody else anything.
func TestLargeMessages(t *testing.T) {
	d := harness.Start(t, harness.Config{NoImage: true})
	c := d.Client(t)
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), 2*time.Minute)
	defer cancel()
	const most = 16 << 20
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			id := fmt.Sprintf("large%d", i)
			large := strings.Repeat("x", most-8192)
			created, err := c.NewContainer(ctx, id, client.WithNewSpec(oci.WithAnnotations(map[string]string{"k": large})))
			if err != nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			spec, err := created.Spec(ctx)
			if err != nil || len(spec.Annotations["k"]) != len(large) {
				t.Errorf("%s: reading it back: %v", id, err)
			}
			if err := created.Delete(ctx); err != nil {
				t.Error(err)
			}
			_, err = c.NewContainer(ctx, id, client.WithNewSpec(oci.WithAnnotations(map[string]string{"k": large + large})))
			if err == nil {
				t.Errorf("%s: a message of 32 MiB is taken", id)
			}
			if _, err := c.Version(ctx); err != nil {
				t.Errorf("%s: after a message that is too large: %v", id, err)
			}
		})
	}
	wg.Wait()
	for _, l := range mustLeases(ctx, t, c) {
		t.Errorf("lease %s is left", l)
	}
}

func mustLeases(ctx context.Context, t *testing.T, c *client.Client) (ids []string) {
	t.Helper()
	list, err := c.LeasesService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		ids = append(ids, l.ID)
	}
	return ids
}

// The time of a start does not follow from the number of records; it is
// printed, with that of the lists.
func TestManyRecords(t *testing.T) {
	d := harness.Start(t, harness.Config{})
	n := setting(t, "BERTH_LOAD_RECORDS", 200)
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), 30*time.Minute)
	defer cancel()
	u := newUser(ctx, t, d, "rec")
	few := starts(ctx, t, u)
	each(t, n, func(i int) error { return u.record(ctx, fmt.Sprintf("rec%d", i)) })
	many := starts(ctx, t, u)
	begin := time.Now()
	cs, err := u.Containers(ctx)
	listed := time.Since(begin)
	if err != nil || len(cs) != n {
		t.Errorf("%d containers, %v, want %d", len(cs), err, n)
	}
	begin = time.Now()
	imgs, err := u.ImageService().List(ctx)
	if err != nil || len(imgs) != n+1 {
		t.Errorf("%d images, %v, want %d", len(imgs), err, n+1)
	}
	t.Logf("%d containers, images and snapshots: start %v, with none %v (%.2f); list of containers %v, of images %v",
		n, many, few, float64(many)/float64(few), listed, time.Since(begin))
	each(t, n, func(i int) error { return u.unrecord(ctx, fmt.Sprintf("rec%d", i)) })
}

// each does something n times, some at a time.
func each(t *testing.T, n int, do func(int) error) {
	t.Helper()
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && !t.Failed(); i = next.Add(1) - 1 {
				if err := do(int(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func (u *user) record(ctx context.Context, id string) error {
	_, err := u.ImageService().Create(ctx, images.Image{Name: "berth.test/" + id + ":1", Target: u.image.Target()})
	if err != nil {
		return err
	}
	_, err = u.NewContainer(ctx, id, client.WithNewSnapshot(id, u.image), client.WithNewSpec())
	return err
}

func (u *user) unrecord(ctx context.Context, id string) error {
	c, err := u.LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	return errors.Join(c.Delete(ctx, client.WithSnapshotCleanup), u.ImageService().Delete(ctx, "berth.test/"+id+":1"))
}

// starts is the shortest of some runs of a container.
func starts(ctx context.Context, t *testing.T, u *user) time.Duration {
	t.Helper()
	least := time.Hour
	for range 10 {
		begin := time.Now()
		if err := u.run(ctx); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(begin))
	}
	return least
}
