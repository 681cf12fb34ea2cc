package api

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// storeError is errgrpc.ToGRPC for errors of the store, where those of the
// kernel get a class too.
func storeError(err error) error {
	if err == nil {
		return nil
	}
	if class := systemClass(err); class != nil && errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) {
		// The text, not a second %w: both would travel, and be printed on a line each.
		err = fmt.Errorf("%s: %w", err.Error(), class)
	}
	return errgrpc.ToGRPC(err)
}

func systemClass(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errdefs.ErrResourceExhausted
	case errors.Is(err, unix.EROFS):
		return errdefs.ErrFailedPrecondition
	case errors.Is(err, fs.ErrPermission):
		return errdefs.ErrPermissionDenied
	}
	return nil
}

// required is the error of a request without the named field.
func required(field string) error {
	return errgrpc.ToGRPC(fmt.Errorf("%s required: %w", field, errdefs.ErrInvalidArgument))
}
