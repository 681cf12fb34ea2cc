package cli

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// containerStatuses are what --filter status= takes.
var containerStatuses = []string{"created", "running", "paused", "pausing", "exited", "unknown"}

// containerMatch is what docker's filters ask of a container, checked.
type containerMatch struct {
	filter
	all    bool
	names  map[string]*regexp.Regexp
	before []time.Time
	since  []time.Time
}

// keepContainers returns the rows that docker's filters hold for; without all,
// those that live, unless it is asked how they ended.
func keepContainers(rows []containerRow, f filter, all bool) ([]containerRow, error) {
	m := containerMatch{filter: f, all: all || f.has("status") || f.has("exited"), names: map[string]*regexp.Regexp{}}
	if err := m.check(); err != nil {
		return nil, err
	}
	for key, times := range map[string]*[]time.Time{"before": &m.before, "since": &m.since} {
		for _, id := range f.byKey[key] {
			i := slices.IndexFunc(rows, func(r containerRow) bool { return r.ID == id })
			if i < 0 {
				return nil, usageError("--filter %s=%s: there is no such container (berth ps -a lists them)", key, id)
			}
			*times = append(*times, rows[i].Created)
		}
	}
	return slices.DeleteFunc(rows, func(r containerRow) bool { return !m.holds(&r) }), nil
}

func (m *containerMatch) check() error {
	for _, v := range m.byKey["status"] {
		if !slices.Contains(containerStatuses, v) {
			return usageError("--filter status=%s: there is no such status (use %s)", v, strings.Join(containerStatuses, ", "))
		}
	}
	for _, v := range m.byKey["exited"] {
		if _, err := strconv.ParseUint(v, 10, 32); err != nil {
			return usageError("--filter exited=%s: use an exit code", v)
		}
	}
	for _, v := range m.byKey["name"] {
		re, err := regexp.Compile(v)
		if err != nil {
			return usageError("--filter name=%s: no regular expression: %w", v, err)
		}
		m.names[v] = re
	}
	return nil
}

func (m *containerMatch) holds(r *containerRow) bool {
	exit := "none"
	if r.ExitCode != nil {
		exit = strconv.FormatUint(uint64(*r.ExitCode), 10)
	}
	return (m.all || r.alive()) &&
		m.any("status", func(v string) bool { return v == r.Status }) &&
		m.any("exited", func(v string) bool { return v == exit }) &&
		m.any("id", func(v string) bool { return strings.HasPrefix(r.ID, v) }) &&
		m.any("name", func(v string) bool { return m.names[v].MatchString(r.ID) }) &&
		m.any("ancestor", func(v string) bool {
			full, _ := fullName(v)
			return r.Image != "" && (r.Image == v || r.Image == full)
		}) &&
		!slices.ContainsFunc(m.byKey["label"], func(v string) bool {
			key, want, valued := strings.Cut(v, "=")
			got, there := r.Labels[key]
			return !there || valued && got != want
		}) &&
		!slices.ContainsFunc(m.before, func(at time.Time) bool { return !r.Created.Before(at) }) &&
		!slices.ContainsFunc(m.since, func(at time.Time) bool { return !r.Created.After(at) })
}
