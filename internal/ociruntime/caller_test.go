package ociruntime_test

import (
	"context"
	"fmt"
	"os"

	"github.com/berthd/berth/internal/ociruntime"
)

// callerArg makes the test binary a process that does nothing but call a
// runtime.
const callerArg = "call-runtime"

func caller(args []string) {
	r := ociruntime.Runtime{Binary: args[0], Root: args[1]}
	_, err := r.State(context.Background(), args[2])
	fmt.Println(err)
	os.Exit(0)
}
