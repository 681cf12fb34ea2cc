package supervisor

import (
	"testing"

	"github.com/berthd/berth/task/tasktest"
)

func stockHarness(t *testing.T) *harness {
	t.Helper()
	shim := stockShimBinary(t)
	h := newHarness(t, nil)
	h.runtime = shim
	return h
}

func TestSuiteOverTheStockShim(t *testing.T) {
	tasktest.Run(t, func(t *testing.T) tasktest.Harness { return stockHarness(t) })
}
