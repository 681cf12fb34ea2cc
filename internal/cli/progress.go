package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/transfer"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/attach"
)

// redrawTime is the least time between two drawings of the bars.
const redrawTime = 100 * time.Millisecond

// progress shows the progress of a transfer on standard error: bars on a
// terminal, else a line for every event. The second function ends it.
func (a *App) progress(quiet bool) (transfer.ProgressFunc, func()) {
	if quiet {
		return func(transfer.Progress) {}, func() {}
	}
	v := &progressView{out: a.Stderr, at: make(map[string]int)}
	if attach.IsTerminal(a.Stderr) {
		v.bars, v.width = true, widthOf(a.Stderr)
	}
	return v.update, v.end
}

// progressView is what is shown of a transfer.
type progressView struct {
	out   io.Writer
	bars  bool
	width int

	mu    sync.Mutex
	items []transfer.Progress // guarded by mu, in the order of their coming
	at    map[string]int      // guarded by mu: name to index in items
	drawn int                 // guarded by mu: lines on the terminal
	last  time.Time           // guarded by mu: of the last drawing
}

func (v *progressView) update(p transfer.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.Name == "" {
		if !v.bars {
			fmt.Fprintf(v.out, "%s\n", printable(p.Event))
		}
		return
	}
	i, known := v.at[p.Name]
	if !known {
		i = len(v.items)
		v.at[p.Name] = i
		v.items = append(v.items, transfer.Progress{})
	}
	changed := v.items[i].Event != p.Event
	v.items[i] = p
	switch {
	case !v.bars:
		if changed {
			fmt.Fprintf(v.out, "%s %s\n", printable(p.Event), printable(p.Name))
		}
	case time.Since(v.last) >= redrawTime:
		v.drawLocked()
	}
}

func (v *progressView) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bars {
		v.drawLocked()
	}
}

// drawLocked writes all lines over the ones of the drawing before.
func (v *progressView) drawLocked() {
	v.last = time.Now()
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	for _, p := range v.items {
		b.WriteString(cut(barLine(p), v.width-1))
		b.WriteString("\x1b[K\n")
	}
	v.drawn = len(v.items)
	_, _ = io.WriteString(v.out, b.String())
}

func barLine(p transfer.Progress) string {
	name := printable(p.Name)
	if kind, hash, ok := strings.Cut(name, "sha256:"); ok {
		name = kind + cut(hash, 13)
	}
	line := fmt.Sprintf("%-28s %-12s", cut(name, 28), cut(printable(p.Event), 12))
	if p.Total <= 0 {
		return line
	}
	const width = 24
	full := int(min(p.Progress, p.Total) * width / p.Total)
	return fmt.Sprintf("%s [%s%s] %9s / %s", line, strings.Repeat("=", full), strings.Repeat(" ", width-full), size(p.Progress), size(p.Total))
}

func widthOf(f *os.File) int {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col < 20 {
		return 80
	}
	return int(ws.Col)
}
