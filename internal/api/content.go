package api

import (
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
)

// NewContent makes containerd.services.content.v1 over a content store.
func NewContent(store content.Store) contentapi.ContentServer { return contentserver.New(store) }
