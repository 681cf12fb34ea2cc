package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"google.golang.org/protobuf/types/known/anypb"

	own "github.com/berthd/berth/internal/events"
)

// counter counts what it is given, or refuses it.
type counter struct {
	n      map[string]int
	refuse error
}

func (c *counter) Forward(_ context.Context, env *events.Envelope) error {
	if c.refuse == nil {
		c.n[env.Topic]++
	}
	return c.refuse
}

func envelope(i int) *events.Envelope {
	return &events.Envelope{
		Timestamp: time.Unix(1700000000, int64(i)), Namespace: "ns", Topic: fmt.Sprintf("/tasks/%d", i),
		Event: &anypb.Any{Value: []byte("event")},
	}
}

// An event that comes again is dropped: at once, after a restart of the
// daemon, and after one that could not write. One that was refused is not.
func TestOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "forwarded")
	c := &counter{n: map[string]int{}}
	open := func() *own.Once {
		o, err := own.OpenOnce(path, c, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	send := func(o *own.Once, i int) {
		if err := o.Forward(t.Context(), envelope(i)); !errors.Is(err, c.refuse) {
			t.Fatal(err)
		}
	}
	o := open()
	const many = 5000 // more than are remembered
	for i := range many {
		send(o, i)
		send(o, i)
	}
	c.refuse = errors.New("not now")
	send(o, many)
	c.refuse = nil
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	send(o, many-1) // closed, as by a disk that fails
	o = open()
	for i := many - 4000; i <= many; i++ {
		send(o, i)
	}
	for i := range many + 1 {
		if got := c.n[fmt.Sprintf("/tasks/%d", i)]; got != 1 {
			t.Fatalf("event %d came %d times", i, got)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 100<<10 {
		t.Errorf("a file of %d bytes (%v)", st.Size(), err)
	}
	send(o, 0) // forgotten by now
	if got := c.n["/tasks/0"]; got != 2 {
		t.Errorf("the oldest came %d times", got)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("no such file"), 0o600); err != nil {
		t.Fatal(err)
	}
	o = open()
	send(o, many+1)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}
