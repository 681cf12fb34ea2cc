package ociruntime_test

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/fakeoci/faketest"
)

// The tests are the subreaper of the containers that they make, as the shim is.
func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "subreaper:", err)
		os.Exit(1)
	}
	// Files that whoever runs the tests has left open are not the caller's.
	if err := unix.CloseRange(3, 1<<30, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "close_range:", err)
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == callerArg {
		caller(os.Args[2:])
	}
	os.Exit(faketest.Run(m))
}
