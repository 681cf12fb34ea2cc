package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/copy"
	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) cpCommand() *cli.Command {
	return &cli.Command{
		Name:      "cp",
		Usage:     "copy files out of a container or into one",
		ArgsUsage: "CONTAINER:PATH|PATH|- CONTAINER:PATH|PATH|-",
		Category:  "Containers",
		Description: `"-" is a tar archive on standard input or output. A directory that exists gets
the source into it; SOURCE/. means the contents alone. Links in a container are
followed inside of it. Files in a container are its root's, files here the
caller's, unless --archive is given. Examples:
  berth cp web:/etc/motd .
  berth cp ./site/. web:/srv/www
  berth cp web:/var/log - | tar t`,
		Flags: []cli.Flag{yes("archive", "keep owners", "a")},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 2 {
				return usageError("two paths are needed (berth cp CONTAINER:PATH PATH, or the other way round)")
			}
			src, dst := parsePlace(cmd.Args().Get(0)), parsePlace(cmd.Args().Get(1))
			switch {
			case (src.id == "") == (dst.id == ""):
				return usageError("one of the two paths, not both, is a container's (CONTAINER:PATH)")
			case src.path == "" || dst.path == "":
				return usageError("a path is missing (CONTAINER:PATH)")
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				return s.copyBetween(ctx, src, dst, cmd.Bool("archive"))
			})
		},
	}
}

// place is one end of a copy; id is empty for the host.
type place struct{ id, path string }

func parsePlace(s string) place {
	id, name, ok := strings.Cut(s, ":")
	// A path of the host may have a colon behind a slash.
	if !ok || strings.ContainsAny(id, "/") || runspec.CheckID(id) != nil {
		return place{path: s}
	}
	return place{id, name}
}

func (s *session) copyBetween(ctx context.Context, src, dst place, archive bool) error {
	inside := src.id + dst.id
	return s.withRoot(ctx, inside, src.id != "", func(root string, spec *specs.Spec) error {
		// Owners as the container sees them are what crosses; root's without archive.
		var out, in copy.Owner
		switch {
		case src.id != "":
			out = unmapOwner(spec)
			if archive {
				in = func(uid, gid int) (int, int) { return uid, gid }
			}
		case archive:
			in = mapOwner(spec)
		default:
			toHost := mapOwner(spec)
			in = func(int, int) (int, int) { return toHost(0, 0) }
		}
		if src.id != "" {
			return s.copyFiles(place{root, src.path}, dst, out, in)
		}
		return s.copyFiles(src, place{root, dst.path}, out, in)
	})
}

// copyFiles copies between two places; the id is the root that a path is
// resolved in, empty for the host's own.
func (s *session) copyFiles(src, dst place, out, in copy.Owner) error {
	if src.path == "-" {
		to, err := openDir(dst)
		if err != nil {
			return err
		}
		defer to.Close()
		return copy.Unpack(s.Stdin, to, in)
	}
	base := path.Base(path.Clean("/" + src.path))
	contents := strings.HasSuffix(src.path, "/.") || src.path == "." || base == "/"
	from, name := place{src.id, path.Dir(strings.TrimRight(src.path, "/"))}, base
	if contents {
		from, name, base = src, ".", "."
	}
	dir, err := openDir(from)
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := dir.Lstat(name)
	if err != nil {
		return fmt.Errorf("%s: %w", src.path, errors.Unwrap(err))
	}
	if dst.path == "-" {
		err := copy.Pack(s.Stdout, dir, name, base, out)
		if errors.Is(err, os.ErrClosed) {
			return nil // nobody reads on
		}
		return err
	}
	to, err := openDir(dst)
	if err != nil && !strings.HasSuffix(dst.path, "/") {
		// No directory: the source gets this name in the directory above.
		if to, err = openDir(place{dst.id, path.Dir(dst.path)}); err == nil {
			defer to.Close()
			base = path.Base(dst.path)
			if contents && info.IsDir() {
				if err := to.Mkdir(base, 0o755); err != nil {
					return err
				}
			}
		}
	} else if err == nil {
		defer to.Close()
	}
	if err != nil {
		return err
	}
	return pipe(dir, name, base, to, out, in)
}

func pipe(from *os.Root, name, as string, to *os.Root, out, in copy.Owner) error {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := copy.Pack(w, from, name, as, out)
		w.CloseWithError(err)
		packed <- err
	}()
	err := copy.Unpack(r, to, in)
	r.CloseWithError(io.ErrClosedPipe)
	if p := <-packed; p != nil && !errors.Is(p, io.ErrClosedPipe) {
		return p
	}
	return err
}

// openDir opens a directory; with a root, every link on the way is resolved
// below it, whatever the container does meanwhile.
func openDir(p place) (*os.Root, error) {
	if p.id == "" {
		return os.OpenRoot(firstOf(p.path, "."))
	}
	f, err := pathrs.OpenInRoot(p.id, path.Clean("/"+p.path))
	if err != nil {
		return nil, fmt.Errorf("in the container: %w", err)
	}
	defer f.Close()
	dir, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, fmt.Errorf("in the container: %s: %w", p.path, errors.Unwrap(err))
	}
	return dir, nil
}

// withRoot calls fn with the root directory of a container: the one that its
// first process has, or its file system, mounted for the time of the call.
func (s *session) withRoot(ctx context.Context, id string, readOnly bool, fn func(root string, spec *specs.Spec) error) error {
	c, err := s.client.ContainerService().Get(ctx, id)
	if err != nil {
		return containerError(id, err)
	}
	spec, err := containerSpec(&c)
	if err != nil {
		return err
	}
	inRoot := func(root string) error { return fn(root, spec) }
	r, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err == nil && r.Process.Pid > 0 && r.Process.Status != tasktypes.Status_STOPPED {
		dir, err := os.Open("/proc/" + strconv.FormatUint(uint64(r.Process.Pid), 10) + "/root")
		if err != nil {
			return fmt.Errorf("container %q: its root: %w", id, err)
		}
		defer dir.Close()
		// The number may have gone to another process before it was opened.
		again, err := s.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
		if err != nil || again.Process.Pid != r.Process.Pid || again.Process.Status == tasktypes.Status_STOPPED {
			return fmt.Errorf("container %q: it ended meanwhile (try again)", id)
		}
		return inRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	}
	if c.SnapshotKey == "" {
		if spec.Root == nil || !filepath.IsAbs(spec.Root.Path) {
			return fmt.Errorf("container %q: it has no file system", id)
		}
		return inRoot(spec.Root.Path)
	}
	mounts, err := s.client.SnapshotService(c.Snapshotter).Mounts(ctx, c.SnapshotKey)
	if err != nil {
		return fmt.Errorf("container %q: snapshot %q: %w", id, c.SnapshotKey, err)
	}
	if readOnly {
		return mount.WithReadonlyTempMount(ctx, mounts, inRoot)
	}
	return mount.WithTempMount(ctx, mounts, inRoot)
}

// mapOwner translates the container's ids to the host's.
func mapOwner(spec *specs.Spec) copy.Owner {
	return func(uid, gid int) (int, int) {
		if spec.Linux != nil && len(spec.Linux.UIDMappings) > 0 {
			if id, ok := runspec.HostID(spec.Linux.UIDMappings, uint32(uid)); ok {
				uid = int(id)
			}
			if id, ok := runspec.HostID(spec.Linux.GIDMappings, uint32(gid)); ok {
				gid = int(id)
			}
		}
		return uid, gid
	}
}

// unmapOwner is the other direction.
func unmapOwner(spec *specs.Spec) copy.Owner {
	invert := func(maps []specs.LinuxIDMapping) (list []specs.LinuxIDMapping) {
		for _, m := range maps {
			list = append(list, specs.LinuxIDMapping{ContainerID: m.HostID, HostID: m.ContainerID, Size: m.Size})
		}
		return list
	}
	if spec.Linux == nil {
		return nil
	}
	return mapOwner(&specs.Spec{Linux: &specs.Linux{UIDMappings: invert(spec.Linux.UIDMappings), GIDMappings: invert(spec.Linux.GIDMappings)}})
}
