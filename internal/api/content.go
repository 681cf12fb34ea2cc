package api

import (
	"context"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
)

// contentServer is containerd's, which ends the process over an update without
// an info.
type contentServer struct {
	contentapi.ContentServer
}

// NewContent makes containerd.services.content.v1 over a content store.
func NewContent(store content.Store) contentapi.ContentServer {
	return contentServer{contentserver.New(store)}
}

// Update changes the fields of an info that the mask names.
func (s contentServer) Update(ctx context.Context, r *contentapi.UpdateRequest) (*contentapi.UpdateResponse, error) {
	if r.Info == nil {
		return nil, required("Info")
	}
	return s.ContentServer.Update(ctx, r)
}
