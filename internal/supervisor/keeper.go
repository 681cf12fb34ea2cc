package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = 2 * time.Second
	// suspectLimit bounds questions to a shim that left the last one
	// unanswered, so that a list of its tasks is not slow too.
	suspectLimit = 100 * time.Millisecond
)

var (
	// errDead: it is proven that the shim does not exist any more.
	errDead = fmt.Errorf("the shim has died: %w", errdefs.ErrUnavailable)
	// errInterrupted: the connection broke while the shim had the call.
	errInterrupted = fmt.Errorf("the shim was restarted: %w", errdefs.ErrUnavailable)
	// errClosed: the supervisor does not serve any more.
	errClosed = fmt.Errorf("the task supervisor is closed: %w", errdefs.ErrUnavailable)
)

// owner knows what a keeper does not: how its shim is reached, and what
// becomes of it. Its methods are called by the keeper's goroutine only.
type owner interface {
	// dial makes one bounded attempt.
	dial(ctx context.Context) (*conn, error)
	// dead says whether the error of dial proves that the shim is gone.
	dead(err error) bool
	// revive is called when the shim is gone. It starts another (true; with
	// an error where that failed and is to be tried again), or gives up for
	// good (false).
	revive(ctx context.Context) (bool, error)
	// end is called last: dead after revive gave up, else because the keeper
	// was closed. It frees what the owner holds.
	end(dead bool)
}

// keeper holds the connection to one shim, makes it anew when it breaks, and
// passes calls.
type keeper struct {
	name  string // of the shim, for errors
	owner owner
	slots chan struct{} // bounds the calls in flight
	kick  chan struct{} // ends the pause before the next attempt

	mu       sync.Mutex
	conn     *conn         // nil while there is none. Guarded by mu
	changed  chan struct{} // closed and replaced at every change. Guarded by mu
	failures int           // failed revivals. Guarded by mu
	failure  error         // the last of them. Guarded by mu
	lastErr  error         // why there is no connection. Guarded by mu
	end      error         // errDead or errClosed once that is so. Guarded by mu
	version  int32         // of the Task service. Guarded by mu
	proven   bool          // the version has been answered in. Guarded by mu
	suspect  bool          // the last question was not answered in time. Guarded by mu
}

func newKeeper(name string, o owner, version int32, inFlight int) *keeper {
	return &keeper{
		name: name, owner: o, version: version,
		slots:   make(chan struct{}, inFlight),
		kick:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
}

// run keeps the connection until ctx ends or the shim is given up. first is
// the connection to begin with, nil to make one. When it ends, first and all
// its successors are closed.
func (k *keeper) run(ctx context.Context, first *conn) {
	cn, backoff := first, minBackoff
	for {
		if cn == nil {
			if cn = k.reconnect(ctx); cn == nil {
				break
			}
		}
		k.update(func() { k.conn, k.lastErr = cn, nil })
		since := time.Now()
		select {
		case <-ctx.Done():
		case <-cn.closed:
		}
		cn.close()
		cn = nil
		k.update(func() { k.conn = nil })
		if time.Since(since) > maxBackoff {
			backoff = minBackoff
		} else {
			// A shim that accepts and hangs up is not to be run against.
			k.pause(ctx, backoff)
			backoff = min(2*backoff, maxBackoff)
		}
	}
	dead := ctx.Err() == nil
	k.update(func() {
		if k.end = errClosed; dead {
			k.end = errDead
		}
	})
	k.owner.end(dead)
}

// reconnect returns nil when ctx has ended or the shim is given up.
func (k *keeper) reconnect(ctx context.Context) *conn {
	backoff := minBackoff
	for ctx.Err() == nil {
		cn, err := k.owner.dial(ctx)
		if err == nil {
			return cn
		}
		k.update(func() { k.lastErr = err })
		if ctx.Err() == nil && k.owner.dead(err) {
			again, err := k.owner.revive(ctx)
			if !again {
				return nil
			}
			if err == nil {
				continue
			}
			k.update(func() { k.failure, k.failures = err, k.failures+1 })
		}
		k.pause(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
	}
	return nil
}

func (k *keeper) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-k.kick:
	case <-timer.C:
	}
}

func (k *keeper) update(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
	close(k.changed)
	k.changed = make(chan struct{})
}

// connection waits for a connection. An impatient caller does not wait any
// longer once the shim could not be started.
func (k *keeper) connection(ctx context.Context, impatient bool) (*conn, int32, error) {
	failures, kicked := -1, false
	for {
		k.mu.Lock()
		cn, version, changed, end, lastErr := k.conn, k.version, k.changed, k.end, k.lastErr
		if failures < 0 {
			failures = k.failures
		}
		failed, failure := k.failures > failures, k.failure
		k.mu.Unlock()
		switch {
		case end != nil:
			return nil, 0, fmt.Errorf("%s: %w", k.name, end)
		case cn != nil && !cn.isClosed():
			return cn, version, nil
		case impatient && failed:
			return nil, 0, fmt.Errorf("%s: %w", k.name, failure)
		case impatient && !kicked:
			kicked = true
			select {
			case k.kick <- struct{}{}:
			default:
			}
		}
		select {
		case <-ctx.Done():
			if lastErr == nil {
				lastErr = errors.New("it is being reconnected")
			}
			return nil, 0, fmt.Errorf("%s cannot be reached (%w): %w", k.name, lastErr, errdefs.ErrUnavailable)
		case <-changed:
		}
	}
}

// call is one method of the Task service and how it is to be treated.
type call struct {
	method string
	// limit bounds the call; 0 leaves it to the context, and takes no slot.
	limit time.Duration
	// repeat: asking again does no harm, so a broken connection is no error.
	repeat bool
	// question: an answer is expected at once.
	question bool
	// impatient: see keeper.connection.
	impatient bool
}

// call passes a request. Errors of the shim have their errdefs class; a shim
// that does not answer in time gives DeadlineExceeded, one that cannot be
// reached Unavailable (errDead where that is proven).
func (k *keeper) call(ctx context.Context, c call, req, resp proto.Message) error {
	parent := ctx
	if c.limit > 0 {
		limit := c.limit
		if c.question && k.suspected() {
			limit = min(limit, suspectLimit)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
		select {
		case k.slots <- struct{}{}:
			defer func() { <-k.slots }()
		case <-ctx.Done():
			return fmt.Errorf("%s has %d calls in hand and takes no other: %w", k.name, cap(k.slots), errdefs.ErrUnavailable)
		}
	}
	for {
		cn, version, err := k.connection(ctx, c.impatient)
		if err != nil {
			return err
		}
		before := cn.sent()
		err = cn.invoke(ctx, version, c.method, req, resp)
		switch {
		case err == nil:
			k.answered(true)
			return nil
		case parent.Err() != nil:
			return parent.Err()
		case ctx.Err() != nil:
			k.silent(c)
			return fmt.Errorf("%s did not answer %s in %v: %w", k.name, c.method, c.limit, context.DeadlineExceeded)
		case c.method == "Create" && leaving(err):
			// It accepts no task any more and ends now, perhaps before its answer
			// is looked at: the connection may be closed. The next dial finds its
			// successor, or nobody.
			cn.close()
			proto.Reset(resp)
		case cn.broken(err):
			cn.close()
			// Where not a byte went out since, the shim was dead already and has
			// not had the call.
			if !c.repeat && cn.sent() != before {
				return k.interrupted(ctx, c, err)
			}
			proto.Reset(resp)
		case k.downgrade(err, version):
			proto.Reset(resp)
		default:
			k.answered(false)
			return errgrpc.ToNative(err)
		}
	}
}

// interrupted tells a call whose fate is unknown what became of the shim.
func (k *keeper) interrupted(ctx context.Context, c call, cause error) error {
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, _, err := k.connection(wait, false); errors.Is(err, errDead) || errors.Is(err, errClosed) {
		return err
	}
	return fmt.Errorf("%s: %s was interrupted (%w); look at the task's state and try again: %w", k.name, c.method, cause, errInterrupted)
}

// leaving recognises the answer of Berth's shim that has decided to end
// because its group is empty. The request was not accepted.
func leaving(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() == codes.Unavailable && strings.Contains(st.Message(), "shutting down")
}

// downgrade goes on in version 2 with a shim that claims version 3 and does
// not serve it, as shims do that an older binary started.
func (k *keeper) downgrade(err error, used int32) bool {
	if !errdefs.IsNotImplemented(errgrpc.ToNative(err)) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if used != 3 || k.proven {
		return false
	}
	k.version = 2
	return true
}

func (k *keeper) connected() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conn != nil
}

func (k *keeper) answered(well bool) {
	k.mu.Lock()
	k.suspect = false
	k.proven = k.proven || well
	k.mu.Unlock()
}

func (k *keeper) silent(c call) {
	if c.question {
		k.mu.Lock()
		k.suspect = true
		k.mu.Unlock()
	}
}

func (k *keeper) suspected() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.suspect
}
