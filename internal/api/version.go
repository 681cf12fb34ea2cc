package api

import (
	"context"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Version is containerd.services.version.v1.
type Version struct {
	versionapi.UnimplementedVersionServer
	version, revision string
}

var _ versionapi.VersionServer = (*Version)(nil)

// NewVersion makes the service. Revision is the commit, with ".m" where the
// tree was modified.
func NewVersion(version, revision string) *Version {
	return &Version{version: version, revision: revision}
}

// Version says what was built.
func (s *Version) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: s.version, Revision: s.revision}, nil
}
