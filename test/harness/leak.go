package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

const (
	// leakLimit is how long a daemon may take to clean up behind a client
	// that has its answer.
	leakLimit  = 20 * time.Second
	purgeLimit = 10 * time.Second
)

// finish checks for leaks, ends the daemon and removes its directory.
func (d *Daemon) finish(tb testing.TB) {
	tb.Helper()
	check := !tb.Failed() && !d.config.NoLeakCheck
	if check && d.running() {
		d.CheckLeaks(tb)
	}
	if !tb.Failed() {
		d.checkEvents(tb, check && d.running())
	}
	if d.running() {
		if tb.Failed() {
			_ = d.cmd.Process.Kill()
			<-d.exited
		} else {
			d.Term(tb)
		}
	}
	d.unwatchEvents()
	if check && !tb.Failed() {
		if left := settle(d.leftOnMachine); len(left) > 0 {
			tb.Errorf("left after the end of %s:\n%s", d.Kind, strings.Join(left, "\n"))
		}
	}
	if tb.Failed() {
		tb.Logf("log of %s:\n%s", d.Kind, d.LogTail())
		if os.Getenv("BERTH_TEST_KEEP") == "1" {
			tb.Logf("kept: %s, namespace %s", d.Dir, d.Namespace)
			return
		}
	}
	if err := d.purge(); err != nil {
		tb.Error(err)
	}
}

// running says whether the daemon's process was started and has not ended.
func (d *Daemon) running() bool {
	if d.exited == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// CheckLeaks fails the test when something is left of what clients made: on
// the machine, in the daemon's directories, in its database or in its file
// descriptors. It removes all images first, so that content and layers that
// nothing refers to show too. The daemon is as good as new afterwards.
func (d *Daemon) CheckLeaks(tb testing.TB) {
	tb.Helper()
	c, err := d.dial()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), d.Namespace), time.Minute)
	defer cancel()
	left := settle(func() []string { return d.leftForClients(ctx, c) })
	if len(left) == 0 {
		left = d.leftAfterImages(ctx, c)
	}
	if err := c.Close(); err != nil {
		tb.Error(err)
	}
	left = append(left, settle(d.leftOnMachine)...)
	left = append(left, settle(func() []string { return d.fdGrowth(tb) })...)
	if len(left) > 0 {
		tb.Errorf("left in %s:\n%s", d.Kind, strings.Join(left, "\n"))
	}
}

// settle asks until nothing is left or the time is over.
func settle(list func() []string) []string {
	var left []string
	Poll(leakLimit, func() bool {
		left = list()
		return len(left) == 0
	})
	return left
}

// leftOnMachine lists what the kernel and the file system show.
func (d *Daemon) leftOnMachine() []string {
	var left []string
	for _, p := range d.processes() {
		left = append(left, "process "+p.String())
	}
	left = append(left, prefixed("mount ", d.mounts())...)
	left = append(left, prefixed("cgroup ", d.cgroups())...)
	left = append(left, prefixed("fifo ", d.fifoDirs())...)
	left = append(left, prefixed("socket ", d.sockets())...)
	dirs := []string{
		filepath.Join(d.State, "io.containerd.runtime.v2.task", d.Namespace),
		filepath.Join(d.Root, "io.containerd.runtime.v2.task", d.Namespace),
		filepath.Join(d.State, "io.containerd.berth.group", d.Namespace),
		filepath.Join(d.State, "s"),
	}
	if d.Kind == Berth {
		// A stock shim whose daemon was killed sometimes leaves its socket behind.
		dirs = append(dirs, filepath.Join(d.Dir, "s"))
	}
	for _, dir := range dirs {
		left = append(left, prefixed("file ", names(dir))...)
	}
	return append(left, prefixed("file ", d.strays())...)
}

// strays lists files that stand beside the daemon's own in its directory,
// which is also where temporary files of clients and daemon go.
func (d *Daemon) strays() []string {
	own := map[string]bool{
		"root": true, "run": true, "s": true, "bin": true, "opt": true, "config.toml": true,
		"daemon.log": true, "d.sock": true, "d.sock.ttrpc": true,
	}
	var found []string
	for _, path := range names(d.Dir) {
		if !own[filepath.Base(path)] {
			found = append(found, path)
		}
	}
	return found
}

func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // nothing there, nothing left
	}
	found := make([]string, 0, len(entries))
	for _, e := range entries {
		found = append(found, filepath.Join(dir, e.Name()))
	}
	return found
}

func prefixed(prefix string, items []string) []string {
	out := make([]string, 0, len(items))
	for _, item := range items {
		out = append(out, prefix+item)
	}
	return out
}

// snapshotters are those that a test may have used.
var snapshotters = []string{"overlayfs", "native"}

// leftForClients lists what clients can see: tasks, containers, snapshots in
// use, leases and unfinished content.
func (d *Daemon) leftForClients(ctx context.Context, c *containerd.Client) []string {
	var left []string
	containers, err := c.Containers(ctx)
	if err != nil {
		return []string{"list containers: " + err.Error()}
	}
	for _, container := range containers {
		left = append(left, "container "+container.ID())
	}
	leases, err := c.LeasesService().List(ctx)
	if err != nil {
		return append(left, "list leases: "+err.Error())
	}
	for _, lease := range leases {
		left = append(left, "lease "+lease.ID)
	}
	ingests, err := c.ContentStore().ListStatuses(ctx)
	if err != nil {
		return append(left, "list ingests: "+err.Error())
	}
	for _, ingest := range ingests {
		left = append(left, "ingest "+ingest.Ref)
	}
	return append(left, listSnapshots(ctx, c, func(i snapshots.Info) bool { return i.Kind != snapshots.KindCommitted })...)
}

func listSnapshots(ctx context.Context, c *containerd.Client, match func(snapshots.Info) bool) []string {
	var left []string
	for _, name := range snapshotters {
		err := c.SnapshotService(name).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if match(info) {
				left = append(left, fmt.Sprintf("snapshot %s (%s, %s)", info.Name, name, info.Kind))
			}
			return nil
		})
		if err != nil {
			left = append(left, "list snapshots of "+name+": "+err.Error())
		}
	}
	return left
}

// leftAfterImages removes the images and lists the content and the layers that
// stay, in the database and on disk.
func (d *Daemon) leftAfterImages(ctx context.Context, c *containerd.Client) []string {
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return []string{"list images: " + err.Error()}
	}
	for _, image := range all {
		if err := c.ImageService().Delete(ctx, image.Name, images.SynchronousDelete()); err != nil {
			return []string{"remove image " + image.Name + ": " + err.Error()}
		}
	}
	return settle(func() []string {
		left := listSnapshots(ctx, c, func(snapshots.Info) bool { return true })
		for _, name := range snapshotters {
			left = append(left, prefixed("file ", names(filepath.Join(d.Root, "io.containerd.snapshotter.v1."+name, "snapshots")))...)
		}
		blobs := filepath.Join(d.Root, "io.containerd.content.v1.content", "blobs", "sha256")
		left = append(left, prefixed("blob ", names(blobs))...)
		return append(left, prefixed("ingest ", names(filepath.Join(d.Root, "io.containerd.content.v1.content", "ingest")))...)
	})
}
