package restart

import (
	"testing"
	"time"
)

func TestDelayGrowsToItsBound(t *testing.T) {
	m := New(Config{MinDelay: time.Second, MaxDelay: 10 * time.Second})
	for fails, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if got := m.delay(fails); got != want*time.Second {
			t.Errorf("after %d runs that did not last: %v, want %v", fails, got, want*time.Second)
		}
	}
	if got := m.delay(1 << 30); got != 10*time.Second {
		t.Errorf("after very many: %v", got)
	}
}
