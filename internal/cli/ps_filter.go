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

// keepContainers returns the rows that docker's filters hold for; without all,
// those that live, unless it is asked how they ended.
func keepContainers(rows []containerRow, f filter, all bool) ([]containerRow, error) {
	all = all || f.has("status") || f.has("exited")
	keep := []func(*containerRow) bool{
		func(r *containerRow) bool { return all || r.alive() },
		func(r *containerRow) bool {
			return f.any("status", func(v string) bool { return v == r.Status })
		},
		func(r *containerRow) bool {
			return f.any("id", func(v string) bool { return strings.HasPrefix(r.ID, v) })
		},
		func(r *containerRow) bool {
			return f.any("ancestor", func(v string) bool {
				full, _ := fullName(v)
				return r.Image != "" && (r.Image == v || r.Image == full)
			})
		},
		func(r *containerRow) bool {
			return !slices.ContainsFunc(f.byKey["label"], func(v string) bool {
				key, want, valued := strings.Cut(v, "=")
				got, there := r.Labels[key]
				return !there || valued && got != want
			})
		},
	}
	for _, v := range f.byKey["status"] {
		if !slices.Contains(containerStatuses, v) {
			return nil, usageError("--filter status=%s: there is no such status (use %s)", v, strings.Join(containerStatuses, ", "))
		}
	}
	for _, v := range f.byKey["exited"] {
		if _, err := strconv.ParseUint(v, 10, 32); err != nil {
			return nil, usageError("--filter exited=%s: use an exit code", v)
		}
	}
	keep = append(keep, func(r *containerRow) bool {
		return f.any("exited", func(v string) bool {
			code, _ := strconv.ParseUint(v, 10, 32)
			return r.ExitCode != nil && uint64(*r.ExitCode) == code
		})
	})
	var names []*regexp.Regexp
	for _, v := range f.byKey["name"] {
		re, err := regexp.Compile(v)
		if err != nil {
			return nil, usageError("--filter name=%s: no regular expression: %w", v, err)
		}
		names = append(names, re)
	}
	if names != nil {
		keep = append(keep, func(r *containerRow) bool {
			return slices.ContainsFunc(names, func(re *regexp.Regexp) bool { return re.MatchString(r.ID) })
		})
	}
	for _, key := range []string{"before", "since"} {
		for _, id := range f.byKey[key] {
			i := slices.IndexFunc(rows, func(r containerRow) bool { return r.ID == id })
			if i < 0 {
				return nil, usageError("--filter %s=%s: there is no such container (berth ps -a lists them)", key, id)
			}
			keep = append(keep, createdSide(key, rows[i].Created))
		}
	}
	return slices.DeleteFunc(rows, func(r containerRow) bool {
		return slices.ContainsFunc(keep, func(holds func(*containerRow) bool) bool { return !holds(&r) })
	}), nil
}

func createdSide(key string, at time.Time) func(*containerRow) bool {
	if key == "before" {
		return func(r *containerRow) bool { return r.Created.Before(at) }
	}
	return func(r *containerRow) bool { return r.Created.After(at) }
}
