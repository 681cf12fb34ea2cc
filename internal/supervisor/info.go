package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxInfos bounds the cache; it is cleared when it is full.
const maxInfos = 64

// infoCache remembers what shims said of themselves, as long as the binaries
// are the same.
type infoCache struct {
	mu    sync.Mutex
	infos map[infoKey]*types.RuntimeInfo // guarded by mu; the values are never changed
}

type infoKey struct {
	shim, runtime fileIdentity
	options       string
}

// fileIdentity changes when a file is replaced or written to.
type fileIdentity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func newInfoCache() *infoCache {
	return &infoCache{infos: make(map[infoKey]*types.RuntimeInfo)}
}

// PluginInfo asks a runtime about itself: the shim's "-info", with the options
// that tasks would be created with.
func (s *Supervisor) PluginInfo(ctx context.Context, req *types.RuntimeRequest) (*types.RuntimeInfo, error) {
	rt, err := s.resolve(req.GetRuntimePath())
	if err != nil {
		return nil, err
	}
	var stdin []byte
	if req.GetOptions() != nil {
		if stdin, err = proto.Marshal(req.Options); err != nil {
			return nil, fmt.Errorf("encode the options of runtime %s: %w", req.RuntimePath, err)
		}
	}
	key := infoKey{options: string(stdin), runtime: ociRuntime(req.GetOptions())}
	if key.shim, err = identifyFile(rt.path); err != nil {
		return nil, err
	}
	if info := s.infos.get(key); info != nil {
		return info, nil
	}
	info, err := s.askInfo(ctx, rt.path, stdin)
	if err != nil {
		return nil, err
	}
	s.infos.put(key, info)
	return proto.CloneOf(info), nil
}

func (s *Supervisor) askInfo(ctx context.Context, path string, stdin []byte) (*types.RuntimeInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Info)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-info")
	cmd.Stdin = bytes.NewReader(stdin)
	out, _, err := run(ctx, cmd)
	if err != nil {
		return nil, fmt.Errorf("shim %s -info: %w", path, err)
	}
	info := &types.RuntimeInfo{}
	if err := proto.Unmarshal(out, info); err != nil {
		return nil, fmt.Errorf("shim %s -info: its answer cannot be read (%w): %w", path, err, errdefs.ErrUnavailable)
	}
	return info, nil
}

func (c *infoCache) get(key infoKey) *types.RuntimeInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	if info := c.infos[key]; info != nil {
		return proto.CloneOf(info)
	}
	return nil
}

func (c *infoCache) put(key infoKey, info *types.RuntimeInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.infos) >= maxInfos {
		clear(c.infos)
	}
	c.infos[key] = info
}

// ociRuntime identifies the OCI runtime that runc's options name. Its features
// are in the answer, so that a new runtime needs a new one. Options of other
// kinds, and a runtime that is not there, give the zero identity.
func ociRuntime(opts *anypb.Any) fileIdentity {
	var runc options.Options
	if opts != nil {
		if !strings.HasSuffix(opts.TypeUrl, "containerd.runc.v1.Options") || proto.Unmarshal(opts.Value, &runc) != nil {
			return fileIdentity{}
		}
	}
	name := runc.BinaryName
	if name == "" {
		name = "runc"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return fileIdentity{}
	}
	id, err := identifyFile(path)
	if err != nil {
		return fileIdentity{}
	}
	return id
}

func identifyFile(path string) (fileIdentity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		err = &os.PathError{Op: "stat", Path: path, Err: err}
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		return fileIdentity{}, err
	}
	return fileIdentity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}
