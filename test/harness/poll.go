package harness

import (
	"testing"
	"time"
)

// Poll asks until the answer is true or the time is over, and returns the last
// answer.
func Poll(limit time.Duration, done func() bool) bool {
	deadline := time.Now().Add(limit)
	pause := time.Millisecond
	for {
		if done() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// Await fails the test when the answer does not become true in time.
func Await(tb testing.TB, limit time.Duration, what string, done func() bool) {
	tb.Helper()
	if !Poll(limit, done) {
		tb.Fatalf("%s: not within %s", what, limit)
	}
}
