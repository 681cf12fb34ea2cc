package integration

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// verbsElsewhere have a test of their own, against both daemons too.
var verbsElsewhere = map[string]string{
	"attach": "TestCLIAttach", "pull": "TestCLIProgress", "push": "TestCLIProgress",
	"checkpoint": "TestCLICheckpoint", "restore": "TestCLICheckpoint", "completion": "TestCLICompletion",
}

// TestCLIVerbs uses every verb once, against stock containerd as well.
func TestCLIVerbs(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		a, b, image := d.ID("a"), d.ID("b"), "berth.test/verbs:1"
		archive := filepath.Join(t.TempDir(), "image.tar")
		used := map[string]bool{}
		for _, step := range []struct {
			args []string
			want string // somewhere in what it prints
		}{
			{[]string{"create", "--name", a, "--label", "app=web", harness.Image, "sleep", "1000"}, a + "\n"},
			{[]string{"start", a}, a + "\n"},
			{[]string{"run", "-d", "--name", b, harness.Image, "echo", "hello"}, b + "\n"},
			{[]string{"wait", b}, "0\n"},
			{[]string{"logs", b}, "hello\n"},
			{[]string{"ps"}, "CONTAINER ID "},
			{[]string{"ps", "--format", "{{.ID}} {{.status}}"}, a + " running\n"},
			{[]string{"ps", "-q", "--filter", "status=exited", "--filter", "exited=0"}, b + "\n"},
			{[]string{"ps", "-q", "--filter", "label=app=web", "--filter", "name=.", "--filter", "ancestor=" + harness.Image}, a + "\n"},
			{[]string{"ps", "-aq", "--filter", "before=" + b}, a + "\n"},
			{[]string{"ps", "-aq", "--filter", "since=" + a}, b + "\n"},
			{[]string{"inspect", "--format", "{{.image}} {{json .spec.process.args}}", a}, harness.Image + ` ["sleep","1000"]`},
			{[]string{"exec", a, "echo", "inside"}, "inside\n"},
			{[]string{"top", "--format", "{{.command}}", a}, "sleep 1000\n"},
			{[]string{"stats", "--no-stream", "--format", "{{.id}} {{.pids}}", a}, a + " 1\n"},
			{[]string{"update", "--pids-limit", "10", a}, ""},
			{[]string{"cp", a + ":/etc/passwd", "-"}, "root"},
			{[]string{"pause", a}, a + "\n"},
			{[]string{"unpause", a}, a + "\n"},
			{[]string{"restart", "-t", "0", a}, a + "\n"},
			{[]string{"check", "--container", a}, ""},
			{[]string{"kill", a}, a + "\n"},
			{[]string{"stop", a}, a + "\n"},
			{[]string{"rm", a, b}, a + "\n" + b + "\n"},
			{[]string{"tag", harness.Image, image}, ""},
			{[]string{"images", "--format", "table {{.name}}"}, "NAME\n"},
			{[]string{"image", "ls", "-q"}, image + "\n"},
			{[]string{"export", "-o", archive, image}, ""},
			{[]string{"rmi", image}, image + "\n"},
			{[]string{"import", archive}, image + "\n"},
			{[]string{"image", "rm", image}, image + "\n"},
			{[]string{"namespace", "ls", "-q"}, d.Namespace + "\n"},
			{[]string{"system", "info"}, "Address:"},
			{[]string{"info", "--format", "{{.namespace}}"}, d.Namespace + "\n"},
			{[]string{"version", "--format", "{{.server.version}}"}, "\n"},
		} {
			used[step.args[0]] = true
			if out := d.MustBerth(t, step.args...); !strings.Contains(out, step.want) {
				t.Errorf("%q prints %q, want %q", step.args, out, step.want)
			}
		}

		p := d.Spawn(t, d.Programs.Berth, "events", "--filter", "container="+a, "--filter", "event=exit", "--format", "{{.topic}} {{.event.exitStatus}}")
		used["events"] = true
		harness.Await(t, time.Minute, "an event", func() bool {
			d.Berth(t, "run", "--rm", "--name", a, harness.Image, "sh", "-c", "exit 3") // before that berth may not listen yet
			return harness.Poll(time.Second, func() bool { return strings.Contains(p.Stdout(), "/tasks/exit 3\n") })
		})
		p.Signal(t, syscall.SIGINT)
		p.Wait(t)

		for line := range strings.Lines(d.MustBerth(t, "__complete", "")) {
			if verb, _, _ := strings.Cut(line, "\t"); !used[verb] && verbsElsewhere[verb] == "" {
				t.Errorf("no test uses %s", verb)
			}
		}
	})
}
