package tasktest

import (
	"strings"
	"testing"

	"github.com/berthd/berth/task"
)

// TestEventChecker writes an event as a letter: (c)reate, (s)tart, (p)aused,
// (r)esumed, (o)om, e(x)it, (d)elete, and of one exec (A)dded, (S)tarted, e(X)it;
// a dash is a gap.
func TestEventChecker(t *testing.T) {
	kinds := map[rune]task.EventKind{
		'c': task.EventCreate, 's': task.EventStart, 'p': task.EventPaused, 'r': task.EventResumed, 'o': task.EventOOM,
		'x': task.EventExit, 'd': task.EventDelete, 'A': task.EventExecAdded, 'S': task.EventExecStarted, 'X': task.EventExit,
	}
	for life, good := range map[string]bool{
		"csxd": true, "csASXxd": true, "cAsSXprooxdcsxd": true, "csAAxd": true, "cxd": true, "-xd": true, "cs-xd": true, "csAS-Xxd": true,
		"scxd": false, "csd": false, "csxxd": false, "csxdd": false, "csASxXd": false, "csSXxd": false, "csAXxd": false,
		"csASXXxd": false, "csxod": false, "csppxd": false, "csrxd": false, "cssxd": false, "ccxd": false, "csxAd": false,
		"-xxd": false, "cs-sxd": false, "csASX-Xxd": false, "cs": false, "csx": false,
	} {
		c := EventChecker{}
		for _, letter := range life {
			if letter == '-' {
				c.Gap()
				continue
			}
			e := task.Event{Kind: kinds[letter], ID: task.ID{Container: "c"}, Pid: 7}
			if strings.ContainsRune("ASX", letter) {
				e.ExecID, e.Pid = "e", 8
			}
			c.Add(e)
		}
		if wrong := append(c.Problems(), c.Unfinished()...); good != (len(wrong) == 0) {
			t.Errorf("%s: good: %t, complaints: %q", life, good, wrong)
		}
	}
}
