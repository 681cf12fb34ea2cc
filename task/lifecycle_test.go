package task

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestDocumentShowsTheTable(t *testing.T) {
	data, err := os.ReadFile("../docs/lifecycle.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []Kind{Init, Exec} {
		if !strings.Contains(string(data), "```\n"+Matrix(kind)+"```\n") {
			t.Errorf("docs/lifecycle.md does not show the table of %s processes:\n%s", kind, Matrix(kind))
		}
	}
}

// What the table must say whatever else it says.
func TestTable(t *testing.T) {
	for _, kind := range []Kind{Init, Exec} {
		for _, from := range States(kind) {
			for _, op := range Operations() {
				next, err := Next(kind, from, op)
				if err != nil {
					checkRefusal(t, kind, from, op, err)
					continue
				}
				if from == Deleted {
					t.Errorf("%s/%s: a deleted process allows it", kind, op)
				}
				if next == Running && (from == Stopped || from == Deleted) {
					t.Errorf("%s/%s/%s: the dead rise", kind, from, op)
				}
				if (next == Deleted) != (op == OpDelete) {
					t.Errorf("%s/%s/%s leads to %s", kind, from, op, next)
				}
			}
		}
	}
	// A process that can still end must be killable or deletable: nothing gets stuck.
	for _, kind := range []Kind{Init, Exec} {
		for _, from := range States(kind) {
			_, kill := Next(kind, from, OpKill)
			_, del := Next(kind, from, OpDelete)
			if from != Deleted && kill != nil && del != nil {
				t.Errorf("%s/%s: neither kill nor delete", kind, from)
			}
		}
	}
}

func checkRefusal(t *testing.T, kind Kind, from Status, op Operation, err error) {
	t.Helper()
	var se *StateError
	if !errors.As(err, &se) || se.Status != from || se.Op != op || se.Kind != kind {
		t.Fatalf("%s/%s/%s: %v", kind, from, op, err)
	}
	gone := from == Deleted || from == Stopped && op == OpKill
	if errdefs.IsNotFound(err) != gone || errdefs.IsFailedPrecondition(err) == gone {
		t.Errorf("%s/%s/%s has the wrong class: %v", kind, from, op, err)
	}
	if !strings.Contains(err.Error(), op.String()) || !strings.Contains(err.Error(), from.String()) {
		t.Errorf("%s/%s/%s: the error names not both: %v", kind, from, op, err)
	}
}

func TestPausingCountsAsRunning(t *testing.T) {
	if next, err := Next(Init, Pausing, OpKill); err != nil || next != Running {
		t.Errorf("%s, %v", next, err)
	}
	if _, err := Next(Init, Unknown, OpStart); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("%v", err)
	}
}

func TestStatusNames(t *testing.T) {
	for _, kind := range []Kind{Init, Exec} {
		for _, s := range States(kind) {
			if ParseStatus(s.String()) != s {
				t.Errorf("%s is read back as %s", s, ParseStatus(s.String()))
			}
		}
	}
	if ParseStatus("nonsense") != Unknown {
		t.Error("nonsense has a status")
	}
}
