package stdio

import "sync"

// Files lets any number of streams write one file or log: each at its end, one
// after the other. splice(2) refuses append mode, so who writes must find the end
// and keep it until the bytes are there. The zero value is ready for use; it
// holds nothing that must be closed. It serves one process: what another one
// writes to the file at the same time may be overwritten.
type Files struct {
	mu   sync.Mutex
	ends map[node]*fileEnd    // guarded by mu; the files that are in use
	logs map[string]*recorder // guarded by mu; the logs that are in use, by path
}

// fileEnd is the end of one file, under whatever paths and descriptors. Who
// writes there holds the lock.
type fileEnd struct {
	sync.Mutex
	files *Files
	node  node
	users int // guarded by files.mu
}

// end returns the end of a file that the caller has open, and keeps open
// until it calls release.
func (f *Files) end(n node) *fileEnd {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.ends[n]
	if e == nil {
		e = &fileEnd{files: f, node: n}
		if f.ends == nil {
			f.ends = map[node]*fileEnd{}
		}
		f.ends[n] = e
	}
	e.users++
	return e
}

// release is called once for each call of [Files.end], when nothing more will
// be written. nil is no file.
func (e *fileEnd) release() {
	if e == nil {
		return
	}
	e.files.mu.Lock()
	defer e.files.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(e.files.ends, e.node)
	}
}
