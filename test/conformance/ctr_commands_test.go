package conformance

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/test/harness"
)

// ctrCommands says for every command of ctr which test runs it, on stock
// containerd and on Berth.
var ctrCommands = map[string]string{
	"containers checkpoint":    "TestCtrContainersCheckpoint",
	"containers create":        "TestCtrContainers",
	"containers delete":        "TestCtrContainers",
	"containers info":          "TestCtrContainers",
	"containers label":         "TestCtrContainers",
	"containers list":          "TestCtrContainers",
	"containers restore":       "TestCtrContainersCheckpoint",
	"content active":           "TestCtrContent",
	"content delete":           "TestCtrContent",
	"content edit":             "TestCtrContent",
	"content fetch":            "TestCtrRegistry",
	"content fetch-blob":       "TestCtrRegistry",
	"content fetch-object":     "TestCtrRegistry",
	"content get":              "TestCtrContent",
	"content ingest":           "TestCtrContent",
	"content label":            "TestCtrContent",
	"content list":             "TestCtrContent",
	"content prune references": "TestCtrSnapshotsDiff",
	"content push-object":      "TestCtrPushObject",
	"deprecations list":        "TestCtrVersion",
	"events":                   "TestCtrEvents",
	"images build-erofs-cache": "TestCtrErofsCache",
	"images check":             "TestCtrImages",
	"images convert":           "TestCtrImageTools",
	"images delete":            "TestCtrImages",
	"images export":            "TestCtrImages",
	"images import":            "TestCtrImages",
	"images inspect":           "TestCtrImageTools",
	"images label":             "TestCtrImages",
	"images list":              "TestCtrImages",
	"images mount":             "TestCtrImagesMount",
	"images prune":             "TestCtrImageTools",
	"images pull":              "TestCtrRegistry",
	"images push":              "TestCtrRegistry",
	"images tag":               "TestCtrImages",
	"images unmount":           "TestCtrImagesMount",
	"images usage":             "TestCtrImageTools",
	"info":                     "TestCtrVersion",
	"install":                  "TestCtrInstall",
	"leases create":            "TestCtrLeases",
	"leases delete":            "TestCtrLeases",
	"leases list":              "TestCtrLeases",
	"namespaces create":        "TestCtrNamespaces",
	"namespaces label":         "TestCtrNamespaces",
	"namespaces list":          "TestCtrNamespaces",
	"namespaces remove":        "TestCtrNamespaces",
	"oci spec":                 "TestCtrRest",
	"plugins inspect-runtime":  "TestCtrPlugins",
	"plugins list":             "TestCtrPlugins",
	"pprof block":              "TestCtrPprof",
	"pprof goroutines":         "TestCtrPprof",
	"pprof heap":               "TestCtrPprof",
	"pprof profile":            "TestCtrPprof",
	"pprof threadcreate":       "TestCtrPprof",
	"pprof trace":              "TestCtrPprof",
	"run":                      "TestCtrRun",
	"sandboxes info":           "TestCtrSandboxes",
	"sandboxes list":           "TestCtrSandboxes",
	"sandboxes remove":         "TestCtrSandboxes",
	"sandboxes run":            "TestCtrSandboxes",
	"shim delete":              "TestCtrShim",
	"shim exec":                "TestCtrShim",
	"shim pprof block":         "TestCtrShim",
	"shim pprof goroutines":    "TestCtrShim",
	"shim pprof heap":          "TestCtrShim",
	"shim pprof profile":       "TestCtrShim",
	"shim pprof threadcreate":  "TestCtrShim",
	"shim pprof trace":         "TestCtrShim",
	"shim shutdown":            "TestCtrShim",
	"shim start":               "TestCtrShim",
	"shim state":               "TestCtrShim",
	"snapshots commit":         "TestCtrSnapshots",
	"snapshots delete":         "TestCtrSnapshots",
	"snapshots diff":           "TestCtrSnapshotsDiff",
	"snapshots info":           "TestCtrSnapshots",
	"snapshots label":          "TestCtrSnapshots",
	"snapshots list":           "TestCtrSnapshots",
	"snapshots mounts":         "TestCtrRest",
	"snapshots prepare":        "TestCtrSnapshots",
	"snapshots tree":           "TestCtrSnapshots",
	"snapshots unpack":         "TestCtrRest",
	"snapshots usage":          "TestCtrSnapshots",
	"snapshots view":           "TestCtrSnapshots",
	"tasks attach":             "TestCtrTasksAttach",
	"tasks checkpoint":         "TestCtrCheckpointRefused",
	"tasks delete":             "TestCtrTaskDeleteForced",
	"tasks exec":               "TestCtrTaskExec",
	"tasks kill":               "TestCtrTaskKill",
	"tasks list":               "TestCtrRunDetached",
	"tasks metrics":            "TestCtrTaskPsAndMetrics",
	"tasks pause":              "TestCtrTaskPause",
	"tasks ps":                 "TestCtrTaskPsAndMetrics",
	"tasks resume":             "TestCtrTaskPause",
	"tasks start":              "TestCtrTaskStart",
	"version":                  "TestCtrVersion",
}

// No command of ctr is without a test: its own help says which there are.
func TestCtrCommands(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NoImage: true})
	commands := helpOf(t, d)
	if want := slices.Sorted(maps.Keys(ctrCommands)); !slices.Equal(commands, want) {
		t.Errorf("the commands of ctr are\n%s\nand the table has\n%s", strings.Join(commands, "\n"), strings.Join(want, "\n"))
	}
	var sources strings.Builder
	for _, pattern := range []string{"*_test.go", "../integration/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(data)
		}
	}
	for command, test := range ctrCommands {
		if !strings.Contains(sources.String(), "func "+test+"(t *testing.T)") {
			t.Errorf("ctr %s: there is no test %s", command, test)
		}
	}
}

// commandLine is a line of the list of commands in a help text: the name and
// its aliases.
var commandLine = regexp.MustCompile(`^   ([a-z][a-z-]*)(, [a-z-]+)*(  |$)`)

// helpOf lists the commands below one that have none below them, sorted.
func helpOf(t *testing.T, d *harness.Daemon, command ...string) []string {
	t.Helper()
	var found []string
	_, list, ok := strings.Cut(d.MustCtr(t, append(slices.Clone(command), "--help")...), "\nCOMMANDS:\n")
	if !ok {
		return []string{strings.Join(command, " ")}
	}
	for line := range strings.Lines(list) {
		m := commandLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			break
		}
		if m[1] != "help" {
			found = append(found, helpOf(t, d, append(slices.Clone(command), m[1])...)...)
		}
	}
	slices.Sort(found)
	return found
}
