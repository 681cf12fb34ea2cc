package harness

import (
	"fmt"
	"os"
	"regexp"
	"sort"
	"strings"
	"testing"
)

// fdCount says how many descriptors of each sort a process has.
type fdCount map[string]int

// fdNumbers are what differs between two descriptors of one sort.
var fdNumbers = regexp.MustCompile(`\[\d+\]`)

// countFDs counts the daemon's descriptors of the sorts that a container
// costs: sockets, pipes, FIFOs, pidfds and files below the state directory.
// Files of the store, which opens them when it first needs them, are left out.
func (d *Daemon) countFDs(tb testing.TB) fdCount {
	tb.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.PID())
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	count := fdCount{}
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // closed meanwhile
		}
		switch {
		case strings.HasPrefix(target, "socket:"), strings.HasPrefix(target, "pipe:"), strings.HasPrefix(target, "anon_inode:[pidfd]"):
			count[fdNumbers.ReplaceAllString(target, "")]++
		case strings.HasPrefix(target, d.State+"/"):
			count[target]++
		}
	}
	return count
}

// fdGrowth lists the sorts of descriptors that the daemon has more of than
// when it was new.
func (d *Daemon) fdGrowth(tb testing.TB) []string {
	tb.Helper()
	var grown []string
	for sort, n := range d.countFDs(tb) {
		if before := d.baseline[sort]; n > before {
			grown = append(grown, fmt.Sprintf("descriptors of %s: %s: %d, were %d", d.Kind, sort, n, before))
		}
	}
	sort.Strings(grown)
	return grown
}
