package api

import (
	"context"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/oci"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// GarbageCollector removes what nothing refers to.
type GarbageCollector interface {
	// ScheduleAndWait returns when what was unreferred at the call is gone.
	ScheduleAndWait(context.Context) (gc.Stats, error)
}

// Images is containerd.services.images.v1 over an image store, which publishes
// the events itself.
type Images struct {
	imagesapi.UnimplementedImagesServer
	store images.Store
	gc    GarbageCollector
}

var _ imagesapi.ImagesServer = (*Images)(nil)

// NewImages makes the service; gc is for synchronous deletes.
func NewImages(store images.Store, gc GarbageCollector) *Images {
	return &Images{store: store, gc: gc}
}

// Get gives one image.
func (s *Images) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	img, err := s.store.Get(ctx, r.Name)
	if err != nil {
		return nil, storeError(err)
	}
	return &imagesapi.GetImageResponse{Image: imageToProto(&img)}, nil
}

// List gives the images that match any of the filters.
func (s *Images) List(ctx context.Context, r *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	imgs, err := s.store.List(ctx, r.Filters...)
	if err != nil {
		return nil, storeError(err)
	}
	resp := &imagesapi.ListImagesResponse{}
	for i := range imgs {
		resp.Images = append(resp.Images, imageToProto(&imgs[i]))
	}
	return resp, nil
}

// Create stores a new image.
func (s *Images) Create(ctx context.Context, r *imagesapi.CreateImageRequest) (*imagesapi.CreateImageResponse, error) {
	if r.Image.GetName() == "" {
		return nil, required("Image.Name")
	}
	created, err := s.store.Create(withEpoch(ctx, r.SourceDateEpoch), imageFromProto(r.Image))
	if err != nil {
		return nil, storeError(err)
	}
	return &imagesapi.CreateImageResponse{Image: imageToProto(&created)}, nil
}

// Update changes the fields that the mask names, or all of them.
func (s *Images) Update(ctx context.Context, r *imagesapi.UpdateImageRequest) (*imagesapi.UpdateImageResponse, error) {
	if r.Image.GetName() == "" {
		return nil, required("Image.Name")
	}
	updated, err := s.store.Update(withEpoch(ctx, r.SourceDateEpoch), imageFromProto(r.Image), r.UpdateMask.GetPaths()...)
	if err != nil {
		return nil, storeError(err)
	}
	return &imagesapi.UpdateImageResponse{Image: imageToProto(&updated)}, nil
}

// Delete removes an image, with a target only while it still points there. A
// synchronous delete returns when its content is gone as well.
func (s *Images) Delete(ctx context.Context, r *imagesapi.DeleteImageRequest) (*emptypb.Empty, error) {
	var opts []images.DeleteOpt
	if r.Target != nil {
		target := oci.DescriptorFromProto(r.Target)
		opts = append(opts, images.DeleteTarget(&target))
	}
	if err := s.store.Delete(ctx, r.Name, opts...); err != nil {
		return nil, storeError(err)
	}
	if r.Sync {
		if _, err := s.gc.ScheduleAndWait(ctx); err != nil {
			return nil, storeError(err)
		}
	}
	return &emptypb.Empty{}, nil
}

// withEpoch makes the store use a fixed time for what it writes.
func withEpoch(ctx context.Context, at *timestamppb.Timestamp) context.Context {
	if at == nil {
		return ctx
	}
	t := at.AsTime()
	return epoch.WithSourceDateEpoch(ctx, &t)
}

func imageToProto(img *images.Image) *imagesapi.Image {
	return &imagesapi.Image{
		Name:      img.Name,
		Labels:    img.Labels,
		Target:    oci.DescriptorToProto(img.Target),
		CreatedAt: timestamppb.New(img.CreatedAt),
		UpdatedAt: timestamppb.New(img.UpdatedAt),
	}
}

func imageFromProto(img *imagesapi.Image) images.Image {
	out := images.Image{
		Name:      img.Name,
		Labels:    img.Labels,
		CreatedAt: img.CreatedAt.AsTime(),
		UpdatedAt: img.UpdatedAt.AsTime(),
	}
	if img.Target != nil {
		out.Target = oci.DescriptorFromProto(img.Target)
	}
	return out
}
