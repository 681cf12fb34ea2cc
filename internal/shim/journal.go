package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
)

const (
	// journalHead is the size of the journal's first field: the offset of the
	// first event that was not sent. Events follow, each after its length in
	// four bytes.
	journalHead = 8
	lengthSize  = 4
	// maxJournal bounds what is read back, and the file of a daemon that is
	// away for long: beyond it the file is written anew with what is queued.
	maxJournal = 64 << 20
)

// journal keeps the events that the daemon has not taken, in the order of the
// queue, for the successor of a shim that is killed. It is not synced: it does
// not outlive the boot. It is not safe for use from several goroutines.
type journal struct {
	f    *os.File
	next int64 // offset of the first event not sent
	end  int64 // of the file
}

// openJournal opens the journal and returns what a predecessor left in it. A
// torn end, where it was killed, is cut off.
func openJournal(path string) (*journal, []*types.Envelope, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("journal of events: %w", err)
	}
	j := &journal{f: f}
	left, err := j.read()
	if err == nil {
		err = j.rewrite(left)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("journal of events: %w", err), f.Close())
	}
	return j, left, nil
}

func (j *journal) read() ([]*types.Envelope, error) {
	data, err := io.ReadAll(io.LimitReader(j.f, maxJournal+journalHead))
	if err != nil || len(data) < journalHead {
		return nil, err
	}
	next := binary.BigEndian.Uint64(data)
	if next < journalHead || next > uint64(len(data)) {
		return nil, nil
	}
	var left []*types.Envelope
	for data = data[next:]; len(data) >= lengthSize; {
		n := uint64(binary.BigEndian.Uint32(data))
		data = data[lengthSize:]
		e := &types.Envelope{}
		if n > uint64(len(data)) || proto.Unmarshal(data[:n], e) != nil || e.Event == nil {
			break
		}
		left, data = append(left, e), data[n:]
	}
	return left, nil
}

// rewrite makes the journal hold exactly the queue.
func (j *journal) rewrite(queue []*types.Envelope) error {
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	j.next, j.end = journalHead, journalHead
	if err := j.mark(); err != nil {
		return err
	}
	for _, e := range queue {
		if err := j.write(e); err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) mark() error {
	_, err := j.f.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(j.next)), 0)
	return err
}

func (j *journal) write(e *types.Envelope) error {
	data, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, lengthSize, lengthSize+256), e)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(data, uint32(len(data)-lengthSize))
	if _, err := j.f.WriteAt(data, j.end); err != nil {
		return err
	}
	j.end += int64(len(data))
	return nil
}

// add appends the last event of the queue.
func (j *journal) add(queue []*types.Envelope) error {
	if j.end > maxJournal {
		return j.rewrite(queue)
	}
	return j.write(queue[len(queue)-1])
}

// drop takes the oldest event off; queue is what is left.
func (j *journal) drop(e *types.Envelope, queue []*types.Envelope) error {
	if len(queue) == 0 {
		return j.rewrite(nil)
	}
	j.next += lengthSize + int64(proto.Size(e))
	return j.mark()
}
