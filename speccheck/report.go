package speccheck

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Finding is one use of something that is not supported, or not known to be.
type Finding struct {
	// Path is where in the spec, e.g. `mounts[3].options[1]`.
	Path string `json:"path"`
	// Value is what was asked for, shortened.
	Value string `json:"value,omitempty"`
	// Lacks says what the runtime or the host lacks.
	Lacks string `json:"lacks"`
	Class Class  `json:"class"`
	// Unknown: it is not known whether it is supported.
	Unknown bool   `json:"unknown,omitempty"`
	Action  Action `json:"action"`
}

// Setting is the key in berthd's configuration that changes the action.
func (f Finding) Setting() string { return "speccheck.classes." + string(f.Class) }

// Docs is where the class is described.
func (f Finding) Docs() string { return "docs/speccheck.md#" + string(f.Class) }

func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(f.Path)
	if f.Value != "" {
		b.WriteString(" (" + f.Value + ")")
	}
	b.WriteString(": " + f.Lacks)
	return b.String()
}

// Report is the result of a check.
type Report struct {
	Runtime  Runtime   `json:"runtime"`
	Findings []Finding `json:"findings"`
	// More counts the findings that are not listed.
	More       int `json:"more,omitempty"`
	moreAction Action
}

// Judge replaces the default actions by the policy's. Names are further names of
// the runtime that the policy may use.
func (r Report) Judge(p Policy, names ...string) Report {
	if len(r.Findings) == 0 {
		return r
	}
	names = append(names, r.Runtime.Binary, r.Runtime.Name)
	list := make([]Finding, len(r.Findings))
	for i, f := range r.Findings {
		if a, ok := p.action(f.Class, names); ok {
			f.Action = a
		}
		list[i] = f
	}
	r.Findings = list
	return r
}

// Action is the strictest of all findings.
func (r Report) Action() Action {
	worst := Allow
	if r.More > 0 {
		worst = r.moreAction
	}
	for _, f := range r.Findings {
		worst = max(worst, f.Action)
	}
	return worst
}

// With returns the findings of an action.
func (r Report) With(a Action) []Finding {
	var list []Finding
	for _, f := range r.Findings {
		if f.Action == a {
			list = append(list, f)
		}
	}
	return list
}

// Err is nil when nothing is refused. Else it is one line, FailedPrecondition,
// with everything that is refused and how it can be allowed.
func (r Report) Err() error {
	if r.Action() < Refuse {
		return nil
	}
	refused := r.With(Refuse)
	var b strings.Builder
	b.WriteString("the spec asks for what would be ignored: ")
	var settings []string
	for i, f := range refused {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(f.String())
		if s := string(f.Class); !contains(settings, s) {
			settings = append(settings, s)
		}
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "; and %d more", r.More)
	}
	b.WriteString(" [to allow it all the same: " + strings.Join(settings, ", ") + ` = "warn" in [speccheck.classes] of berthd.toml; see docs/speccheck.md]`)
	return fmt.Errorf("%s: %w", b.String(), errdefs.ErrFailedPrecondition)
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}
