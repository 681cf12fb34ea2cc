package events

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/events"
)

const (
	// onceSize is how many events are remembered. A sender sends one after the
	// other, so of each only the last can come again.
	onceSize = 4096
	sumSize  = 16
	slotSize = 8 + sumSize // the number of the event, and its sum
)

// Once forwards each event once: one that comes again, because its sender did
// not live to have our answer, or we did not live to give it, is dropped. It
// remembers the last events in a file, so that the next daemon knows them too.
// Two events with the same namespace, topic, time and content are the same.
//
// An event is noted after it was handed to the subscribers. A daemon that is
// killed between the two, which is some microseconds, forwards it again.
type Once struct {
	to  events.Forwarder
	log *slog.Logger

	mu    sync.Mutex
	f     *os.File                   // guarded by mu; nil once it cannot be written
	ring  [onceSize][sumSize]byte    // guarded by mu
	known map[[sumSize]byte]struct{} // what is in ring, guarded by mu
	n     uint64                     // events so far, guarded by mu
}

var _ events.Forwarder = (*Once)(nil)

// OpenOnce reads the file, or makes it. The caller closes the result.
func OpenOnce(path string, to events.Forwarder, log *slog.Logger) (*Once, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("memory of forwarded events: %w", err)
	}
	o := &Once{to: to, log: log, f: f, known: map[[sumSize]byte]struct{}{}}
	data, err := io.ReadAll(io.LimitReader(f, onceSize*slotSize))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memory of forwarded events: %w", err), f.Close())
	}
	for ; len(data) >= slotSize; data = data[slotSize:] {
		// A slot that is damaged is an event that is not known.
		if n := binary.BigEndian.Uint64(data); n > 0 {
			o.put(n-1, [sumSize]byte(data[8:slotSize]))
			o.n = max(o.n, n)
		}
	}
	return o, nil
}

func (o *Once) put(n uint64, sum [sumSize]byte) {
	slot := &o.ring[n%onceSize]
	delete(o.known, *slot)
	*slot = sum
	o.known[sum] = struct{}{}
}

// Forward implements events.Forwarder.
func (o *Once) Forward(ctx context.Context, env *events.Envelope) error {
	sum := sumOf(env)
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.known[sum]; known {
		return nil
	}
	if err := o.to.Forward(ctx, env); err != nil {
		return err
	}
	o.put(o.n, sum)
	o.n++
	if o.f == nil {
		return nil
	}
	slot := append(binary.BigEndian.AppendUint64(nil, o.n), sum[:]...)
	if _, err := o.f.WriteAt(slot, int64((o.n-1)%onceSize)*slotSize); err != nil {
		o.log.Warn("an event may come twice after a restart of the daemon", "error", errors.Join(err, o.f.Close()))
		o.f = nil
	}
	return nil
}

func sumOf(env *events.Envelope) [sumSize]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d %q %q ", env.Timestamp.UnixNano(), env.Namespace, env.Topic)
	if env.Event != nil {
		h.Write(env.Event.GetValue())
	}
	return [sumSize]byte(h.Sum(nil))
}

// Close lets go of the file.
func (o *Once) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.f == nil {
		return nil
	}
	err := o.f.Close()
	o.f = nil
	return err
}
