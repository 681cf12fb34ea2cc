package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
)

const (
	// journalHead is the size of the journal's first two fields: the offset of the
	// first event that was not sent, and the time in nanoseconds up to which events
	// may have been taken out. Events follow, each after its length in four bytes.
	journalHead = 16
	lengthSize  = 4
	// compactAt is the size at which sent events are taken out, all but those in
	// the last keepSent bytes: a successor asks whether the last ones were told.
	compactAt = 512 << 10
	keepSent  = 128 << 10
	// maxJournal bounds what is read back.
	maxJournal = 64 << 20
)

// journal keeps the events that the daemon has not taken, in the order of the
// queue, for the successor of a shim that is killed, and the last ones that it
// has. It is not synced: it does not outlive the boot. It is not safe for use
// from several goroutines.
type journal struct {
	path    string
	f       *os.File
	next    int64 // offset of the first event not sent
	end     int64 // of the file
	horizon int64 // see journalHead
	limit   int64 // size at which to compact
}

// openJournal opens the journal and returns the events that a predecessor left
// in it; the last unsent of them were not sent. A torn end, where it was killed,
// is cut off.
func openJournal(path string) (j *journal, events []*types.Envelope, unsent int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("journal of events: %w", err)
	}
	j = &journal{path: path, f: f, limit: compactAt}
	data, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err == nil {
		if events, unsent = j.parse(data); j.end == 0 {
			err = j.reset()
		} else {
			err = j.f.Truncate(j.end)
		}
	}
	if err != nil {
		return nil, nil, 0, errors.Join(fmt.Errorf("journal of events: %w", err), f.Close())
	}
	return j, events, unsent, nil
}

// parse leaves end at 0 where data is no journal.
func (j *journal) parse(data []byte) (events []*types.Envelope, unsent int) {
	if len(data) < journalHead {
		return nil, 0
	}
	next, horizon := binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:])
	if next < journalHead || next > uint64(len(data)) {
		return nil, 0
	}
	at, whole := int64(journalHead), next == journalHead
	for {
		e, size := decodeEvent(data[at:])
		if e == nil {
			break
		}
		if uint64(at) >= next {
			unsent++
		}
		events, at = append(events, e), at+size
		whole = whole || uint64(at) == next
	}
	if !whole {
		return nil, 0
	}
	j.next, j.end, j.horizon = int64(next), at, int64(horizon)
	return events, unsent
}

// decodeEvent returns the event at the start of data with the bytes that it
// takes; nil where there is none.
func decodeEvent(data []byte) (*types.Envelope, int64) {
	if len(data) < lengthSize {
		return nil, 0
	}
	n := uint64(binary.BigEndian.Uint32(data))
	if data = data[lengthSize:]; n > uint64(len(data)) {
		return nil, 0
	}
	e := &types.Envelope{}
	if proto.Unmarshal(data[:n], e) != nil || e.Event == nil {
		return nil, 0
	}
	return e, lengthSize + int64(n)
}

// reset makes an empty journal. What it may have held counts as told.
func (j *journal) reset() error {
	j.next, j.end, j.horizon = journalHead, journalHead, time.Now().UnixNano()
	return errors.Join(j.f.Truncate(0), j.mark())
}

func (j *journal) head() []byte {
	head := binary.BigEndian.AppendUint64(nil, uint64(j.next))
	return binary.BigEndian.AppendUint64(head, uint64(j.horizon))
}

func (j *journal) mark() error {
	_, err := j.f.WriteAt(j.head(), 0)
	return err
}

// add appends an event.
func (j *journal) add(e *types.Envelope) error {
	data, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, lengthSize, lengthSize+256), e)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-lengthSize))
	if _, err := j.f.WriteAt(data, j.end); err != nil {
		return err
	}
	j.end += int64(len(data))
	if j.end > j.limit {
		return j.compact()
	}
	return nil
}

// sent marks the oldest event that was not sent.
func (j *journal) sent(e *types.Envelope) error {
	j.next += lengthSize + int64(proto.Size(e))
	return j.mark()
}

// compact replaces the file by one without the oldest of the sent events.
func (j *journal) compact() error {
	data := make([]byte, j.end)
	if _, err := j.f.ReadAt(data, 0); err != nil {
		return err
	}
	cut := int64(journalHead)
	for cut < j.next-keepSent {
		e, size := decodeEvent(data[cut:])
		if e == nil {
			return fmt.Errorf("%s is damaged at %d", j.path, cut)
		}
		cut += size
		j.horizon = max(j.horizon, e.Timestamp.AsTime().UnixNano())
	}
	j.next, j.end = j.next-cut+journalHead, j.end-cut+journalHead
	j.limit = max(compactAt, 2*j.end)
	tmp := j.path + ".new"
	if err := os.WriteFile(tmp, append(j.head(), data[cut:]...), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	old := j.f
	j.f = f
	return errors.Join(old.Close(), os.Rename(tmp, j.path))
}

// abandon gives up a journal that cannot be written: a successor must not take
// what is in it for all that was told.
func (j *journal) abandon() error {
	return errors.Join(j.f.Close(), remove(j.path))
}
