package shim

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What a shim has not sent when it is killed, its successor sends: everything,
// once, before its own. It is killed at any byte of a write.
func TestJournal(t *testing.T) {
	d := newDaemon(t)
	path := filepath.Join(t.TempDir(), "events")
	leave := d.come(t)
	killed := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
	want := started(killed, 0, 3)
	await(t, "the first events", func() bool { return len(d.events()) == 3 })
	leave()
	want = append(want, started(killed, 3, 7)...)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := closeWithin(t, killed, time.Millisecond); err == nil {
		t.Error("all was sent to nobody")
	}
	d.come(t)
	for cut := range 20 {
		if err := os.WriteFile(path, data[:len(data)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		before := len(d.events())
		next := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
		expect := append(slices.Clone(want[3:7-min(cut, 1)]), started(next, 7, 9)...)
		if err := closeWithin(t, next, limit); err != nil {
			t.Error(err)
		}
		if got := d.events()[before:]; !slices.Equal(got, expect) {
			t.Errorf("cut by %d: got  %q\nwant %q", cut, got, expect)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != journalHead {
			t.Errorf("a journal of %v (%v) is left", st.Size(), err)
		}
	}
}

// A file that is no journal costs what is in it, and no more.
func TestJournalGarbage(t *testing.T) {
	for _, text := range []string{"", "x", "\x00\x00\x00\x00\x00\x00\x00\x08\xff\xff\xff\xff", "no journal at all, but text"} {
		d := newDaemon(t)
		path := filepath.Join(t.TempDir(), "events")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d.come(t)
		p := newPublisher(d.path, path, slog.New(slog.DiscardHandler))
		want := started(p, 0, 3)
		if err := closeWithin(t, p, limit); err != nil {
			t.Error(err)
		}
		if got := d.events(); !slices.Equal(got, want) {
			t.Errorf("after %q: %q", text, got)
		}
	}
}
