package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// figure is one number of the report.
type figure struct {
	Row     string  `json:"row"`
	Variant string  `json:"variant"`
	Value   float64 `json:"value"` // the median of the samples
	Unit    string  `json:"unit,omitempty"`
	Min     float64 `json:"min,omitempty"`
	Max     float64 `json:"max,omitempty"`
	Samples int     `json:"samples"`
	// Ratio is the value over stock's; 0 where stock was not measured.
	Ratio float64 `json:"ratio,omitempty"`
}

// report is what a run of the bench found, and on what.
type report struct {
	Time     time.Time         `json:"time"`
	Kernel   string            `json:"kernel"`
	CPUs     int               `json:"cpus"`
	Versions map[string]string `json:"versions"`
	Figures  []figure          `json:"figures"`
}

func newReport(ctx context.Context, l *lab) *report {
	r := &report{Time: time.Now().UTC(), CPUs: runtime.NumCPU(), Versions: map[string]string{}}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		r.Kernel = strings.TrimSpace(string(b))
	}
	peers := filepath.Join(l.opts.source, "out", "peers", "bin")
	programs := map[string]string{"runc": l.opts.runc, "containerd": filepath.Join(peers, "containerd")}
	for _, e := range l.engines {
		if e.name == berth {
			programs["berthd"] = filepath.Join(l.opts.source, "bin", "berthd")
		}
	}
	for name, path := range programs {
		cmd := l.command(ctx, path, "--version")
		out, err := cmd.Output()
		cmd.cancel()
		if err != nil {
			out = []byte(err.Error())
		}
		first, _, _ := strings.Cut(string(out), "\n")
		r.Versions[name] = strings.TrimSpace(first)
	}
	return r
}

// bases are what the other variants of a row are compared with.
var bases = []string{"ctr on " + stock, "client on " + stock, "empty Go program"}

// base names what a variant is compared with: stock containerd doing the same.
func base(row map[string]float64, variant string) string {
	if _, rest, ok := strings.Cut(variant, ", "); ok {
		return stock + ", " + rest
	}
	for _, name := range bases {
		if row[name] > 0 {
			return name
		}
	}
	return ""
}

// compare sets the ratios.
func (r *report) compare() {
	rows := map[string]map[string]float64{}
	for _, f := range r.Figures {
		if rows[f.Row] == nil {
			rows[f.Row] = map[string]float64{}
		}
		rows[f.Row][f.Variant] = f.Value
	}
	for i, f := range r.Figures {
		if b := rows[f.Row][base(rows[f.Row], f.Variant)]; b > 0 {
			r.Figures[i].Ratio = f.Value / b
		}
	}
}

// print writes the report as a table.
func (r *report) print(w io.Writer) error {
	r.compare()
	fmt.Fprintf(w, "%d CPUs, kernel %s\n", r.CPUs, r.Kernel)
	for _, name := range []string{"berthd", "containerd", "runc"} {
		if v := r.Versions[name]; v != "" {
			fmt.Fprintf(w, "%s: %s\n", name, v)
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROW\tVARIANT\tMEDIAN\tUNIT\tRATIO\tMIN\tMAX")
	row := ""
	for _, f := range r.Figures {
		name := f.Row
		if name == row {
			name = ""
		}
		row = f.Row
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%s\t%s\t%s\t%s\n", name, f.Variant, f.Value, f.Unit,
			optional("%.2f", f.Ratio), optional("%.1f", f.Min), optional("%.1f", f.Max))
	}
	return t.Flush()
}

func optional(format string, value float64) string {
	if value == 0 {
		return "-"
	}
	return fmt.Sprintf(format, value)
}

// write writes the report as JSON.
func (r *report) write(path string) error {
	r.compare()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
