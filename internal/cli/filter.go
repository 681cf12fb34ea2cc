package cli

import (
	"slices"
	"strings"
)

// filterKeys are the keys of docker's kind of filters, KEY=VALUE, that a verb
// knows.
type filterKeys []string

var (
	containerFilters = filterKeys{"status", "name", "label", "id", "ancestor", "exited", "before", "since"}
	eventFilters     = filterKeys{"type", "event", "container", "image"}
)

// help names the keys.
func (k filterKeys) help() string {
	return strings.Join(k, "=, ") + "= (of one key any may hold, but every label; all keys must)"
}

// filter is what --filter asks for.
type filter struct {
	// byKey are the values of docker's filters.
	byKey map[string][]string
	// native are containerd's, for the daemon; any of them may hold.
	native []string
}

// parse tells docker's filters from containerd's, in which a comparison is
// written ==, != or ~=, or is left out.
func (k filterKeys) parse(list []string) (filter, error) {
	f := filter{byKey: map[string][]string{}}
	for _, s := range list {
		key, value, found := strings.Cut(s, "=")
		switch {
		case !found, strings.HasPrefix(value, "="), strings.HasSuffix(key, "!"), strings.HasSuffix(key, "~"):
			f.native = append(f.native, s)
		case !slices.Contains(k, key):
			return f, usageError("--filter %q: unknown key %q (use %s=, or a filter of containerd with ==)", s, key, strings.Join(k, "=, "))
		default:
			f.byKey[key] = append(f.byKey[key], value)
		}
	}
	return f, nil
}

func (f *filter) has(key string) bool { return len(f.byKey[key]) > 0 }

// any says whether one of the values of a key holds, or none is asked for.
func (f *filter) any(key string, holds func(value string) bool) bool {
	return !f.has(key) || slices.ContainsFunc(f.byKey[key], holds)
}
