package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cli/attach"
)

// redrawTime is the least time between two drawings of the bars, and between
// two lines about the same thing.
const redrawTime = 100 * time.Millisecond

// How the progress of a transfer is shown.
type progressMode int

const (
	progressAuto  progressMode = iota // bars where standard error is a terminal, else lines
	progressQuiet                     // nothing but the result
	progressJSON                      // JSON on standard output, the result too
)

func progressFlags(result string) []cli.Flag {
	return []cli.Flag{
		yes("quiet", "print the "+result+" alone", "q"),
		yes("json", "print the progress as JSON objects, a line each; the last has the event done"),
	}
}

func readProgress(cmd *cli.Command) (progressMode, error) {
	switch {
	case cmd.Bool("quiet") && cmd.Bool("json"):
		return 0, usageError("--quiet and --json exclude each other")
	case cmd.Bool("quiet"):
		return progressQuiet, nil
	case cmd.Bool("json"):
		return progressJSON, nil
	}
	return progressAuto, nil
}

// progressRow is a line of --json. The names of the fields stay as they are.
type progressRow struct {
	Event string `json:"event"`
	// Name is what the event is about, e.g. layer-sha256:…; of the event done
	// the image.
	Name    string   `json:"name,omitempty"`
	Parents []string `json:"parents,omitempty"`
	// Progress and Total are bytes.
	Progress int64 `json:"progress,omitempty"`
	Total    int64 `json:"total,omitempty"`
}

func (a *App) printProgress(row progressRow) {
	if line, err := json.Marshal(row); err == nil {
		a.printf("%s\n", line)
	}
}

// done prints what a transfer came to.
func (a *App) done(mode progressMode, name string) {
	if mode == progressJSON {
		a.printProgress(progressRow{Event: "done", Name: name})
		return
	}
	a.printf("%s\n", name)
}

// progress shows how a transfer goes, until it is ended.
func (a *App) progress(mode progressMode) *progressView {
	return &progressView{
		app: a, mode: mode, at: make(map[string]int),
		bars: mode == progressAuto && draws(a.Stderr),
	}
}

// progressView is what is shown of a transfer.
type progressView struct {
	app  *App
	mode progressMode
	bars bool

	mu    sync.Mutex
	ended bool           // guarded by mu
	items []progressItem // guarded by mu, in the order of their coming
	at    map[string]int // guarded by mu: name to index in items
	drawn int            // guarded by mu: lines on the terminal
	last  time.Time      // guarded by mu: of the last drawing
	due   bool           // guarded by mu: a drawing is on its way
}

type progressItem struct {
	transfer.Progress
	told time.Time // of its last line
}

// update implements transfer.ProgressFunc.
func (v *progressView) update(p transfer.Progress) {
	if v.mode == progressQuiet {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return
	}
	i, known := v.at[p.Name]
	if !known {
		i = len(v.items)
		v.at[p.Name] = i
		v.items = append(v.items, progressItem{})
	}
	item := &v.items[i]
	changed := item.Event != p.Event
	item.Progress = p
	switch {
	case v.bars:
		if !v.due {
			v.due = true
			time.AfterFunc(redrawTime-time.Since(v.last), v.draw)
		}
	case v.mode == progressJSON:
		if changed || time.Since(item.told) >= redrawTime {
			item.told = time.Now()
			v.app.printProgress(progressRow{Event: p.Event, Name: p.Name, Parents: p.Parents, Progress: p.Progress, Total: p.Total})
		}
	case changed:
		fmt.Fprintf(v.app.Stderr, "%s\n", strings.TrimSpace(printable(p.Event)+" "+printable(p.Name)))
	}
}

// draw is called by a timer, which nobody waits for: after the end it does
// nothing.
func (v *progressView) draw() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.due = false
	if !v.ended {
		v.drawLocked()
	}
}

func (v *progressView) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.bars && !v.ended {
		v.drawLocked()
	}
	v.ended = true
}

// drawLocked writes all lines over the ones of the drawing before. What does
// not fit on the terminal is counted.
func (v *progressView) drawLocked() {
	v.last = time.Now()
	width, height := 80, 24
	if ws, err := unix.IoctlGetWinsize(int(v.app.Stderr.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col >= 20 && ws.Row >= 5 {
		width, height = int(ws.Col), int(ws.Row)
	}
	var lines []string
	for _, p := range v.items {
		if p.Name != "" {
			lines = append(lines, barLine(p.Progress))
		}
	}
	if more := len(lines) - (height - 1); more > 0 {
		lines = append([]string{fmt.Sprintf("and %d more", more+1)}, lines[more+1:]...)
	}
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", min(v.drawn, height-1))
	}
	for _, line := range lines {
		b.WriteString(cut(line, width-1))
		b.WriteString("\x1b[K\n")
	}
	v.drawn = len(lines)
	_, _ = v.app.Stderr.WriteString(b.String())
}

func barLine(p transfer.Progress) string {
	name := printable(p.Name)
	if kind, hash, ok := strings.Cut(name, "sha256:"); ok {
		name = kind + cut(hash, 13)
	}
	if r := []rune(name); len(r) > 28 {
		name = "…" + string(r[len(r)-27:]) // of a path the end says more
	}
	line := fmt.Sprintf("%-28s %-12s", name, cut(printable(p.Event), 12))
	switch {
	case p.Total > 0:
		const width = 24
		full := int(min(p.Progress, p.Total) * width / p.Total)
		return fmt.Sprintf("%s [%s%s] %9s / %s", line, strings.Repeat("=", full), strings.Repeat(" ", width-full), size(p.Progress), size(p.Total))
	case p.Progress > 0:
		return fmt.Sprintf("%s %s", line, size(p.Progress))
	}
	return line
}

// draws says whether a file is a terminal on which lines can be drawn anew.
// There are no colours, so nothing for NO_COLOR to take away.
func draws(f *os.File) bool {
	return attach.IsTerminal(f) && os.Getenv("TERM") != "dumb"
}
