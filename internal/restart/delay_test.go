package restart

import (
	"testing"
	"time"
)

func TestDelayGrowsToItsBound(t *testing.T) {
	m := New(Config{MinDelay: time.Second, MaxDelay: 10 * time.Second})
	for fails, seconds := range []int{1, 2, 4, 8, 10, 10} {
		if got, want := m.delay(fails), time.Duration(seconds)*time.Second; got != want {
			t.Errorf("after %d runs that did not last: %v, want %v", fails, got, want)
		}
	}
	if got := m.delay(1 << 30); got != 10*time.Second {
		t.Errorf("after very many: %v", got)
	}
}
