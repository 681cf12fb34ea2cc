package storage

import (
	"context"
	"sync"
)

// keyLock is one lock a key, for core/unpack: two pulls of one layer fetch and
// extract it once. A key costs memory only while it is held or wanted.
type keyLock struct {
	mu sync.Mutex
	// held has a channel for each key in use; guarded by mu.
	held map[string]*keyHolder
}

type keyHolder struct {
	// token holds one element while the key is free.
	token chan struct{}
	// users counts the holder and all waiters; guarded by keyLock.mu.
	users int
}

// Lock waits for the key until the context ends.
func (k *keyLock) Lock(ctx context.Context, key string) error {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyHolder{}
	}
	h, ok := k.held[key]
	if !ok {
		h = &keyHolder{token: make(chan struct{}, 1)}
		h.token <- struct{}{}
		k.held[key] = h
	}
	h.users++
	k.mu.Unlock()

	select {
	case <-h.token:
		return nil
	case <-ctx.Done():
		k.mu.Lock()
		defer k.mu.Unlock()
		k.leaveLocked(key, h)
		return context.Cause(ctx)
	}
}

// Unlock gives the key to the next waiter. The caller holds it.
func (k *keyLock) Unlock(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, ok := k.held[key]
	if !ok {
		panic("storage: unlock of a key that is not locked: " + key)
	}
	h.token <- struct{}{}
	k.leaveLocked(key, h)
}

func (k *keyLock) leaveLocked(key string, h *keyHolder) {
	h.users--
	if h.users == 0 {
		delete(k.held, key)
	}
}
