package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v3"
)

// listed prints rows as a verb with these arguments does.
func listed(t *testing.T, rows []containerRow, args ...string) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	app := &App{Stdout: out}
	cmd := &cli.Command{Name: "ps", Flags: listFlags(list("filter", "")), Action: func(_ context.Context, cmd *cli.Command) error {
		l, err := newListing(cmd, containerColumns(time.Unix(1000, 0)))
		if err != nil {
			return err
		}
		f, err := containerFilters.parse(cmd.StringSlice("filter"))
		if err != nil {
			return err
		}
		kept, err := keepContainers(append([]containerRow(nil), rows...), f, true)
		if err != nil {
			return err
		}
		return l.show(app, kept)
	}}
	quiet(cmd)
	err = cmd.Run(context.Background(), append([]string{"ps"}, args...))
	data, rerr := os.ReadFile(out.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return string(data), err
}

func someRows() []containerRow {
	three, zero := uint32(3), uint32(0)
	at := time.Unix(880, 0)
	return []containerRow{
		{
			ID: "web", Image: "r.test/web:1", Command: []string{"httpd", "-f"}, Created: time.Unix(700, 0), Status: "exited",
			ExitCode: &three, ExitedAt: &at, Labels: map[string]string{"app": "<a&b>"},
		},
		{ID: "worker", Image: "r.test/job:1", Created: time.Unix(400, 0), Status: "exited", ExitCode: &zero, ExitedAt: &at, Labels: map[string]string{}},
		{ID: "db", Created: time.Unix(100, 0), Status: "created", Labels: map[string]string{"app": "x", "tier": "1"}},
	}
}

func TestListingForms(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"names":         {[]string{"-q"}, "web\nworker\ndb\n"},
		"template":      {[]string{"--format", "{{.id}}={{.exitCode}}"}, "web=3\nworker=0\ndb=\n"},
		"docker's name": {[]string{"--format", `{{.ID}}\t{{if .Image}}{{.Image}}{{else}}-{{end}}`}, "web\tr.test/web:1\nworker\tr.test/job:1\ndb\t-\n"},
		"nested":        {[]string{"--format", "{{.labels.app}}|{{range $k, $v := .labels}}{{$k}} {{end}}"}, "<a&b>|app \n|\nx|app tier \n"},
		"functions":     {[]string{"--format", `{{join .command " "}} {{upper .id}} {{truncate .image 5}} {{json .labels}}`}, "httpd -f WEB r.te… {\"app\":\"<a&b>\"}\n WORKER r.te… {}\n DB  {\"app\":\"x\",\"tier\":\"1\"}\n"},
		"numbers":       {[]string{"--format", "{{if eq .id `web`}}{{eq .exitCode 3}}{{end}}"}, "true\n\n\n"},
		"table":         {[]string{"--format", `table {{.ID}}\t{{json .status}}`}, "ID       STATUS\nweb      \"exited\"\nworker   \"exited\"\ndb       \"created\"\n"},
	} {
		if out, err := listed(t, someRows(), test.args...); err != nil || out != test.want {
			t.Errorf("%s: %v\n%q, want\n%q", name, err, out, test.want)
		}
	}
	out, err := listed(t, someRows(), "--format", "json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var row containerRow
	if err != nil || len(lines) != 3 || json.Unmarshal([]byte(lines[0]), &row) != nil || row.ID != "web" {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := listed(t, nil, "--json"); err != nil || out != "[]\n" {
		t.Errorf("no rows: %q, %v", out, err)
	}
	if out, err := listed(t, someRows()); err != nil || !strings.HasPrefix(out, "CONTAINER ID") || !strings.Contains(out, "Exited (3) 2 minutes ago") {
		t.Errorf("%q, %v", out, err)
	}
	for _, bad := range []string{"{{.id", "{{.Nosuch}}", "{{nosuch .id}}", "{{index .id 99}}", "{{if .nosuch}}{{end}}"} {
		if out, err := listed(t, someRows(), "--format", bad); err == nil || out != "" || !strings.Contains(err.Error(), "--format") {
			t.Errorf("%s: %q, %v", bad, out, err)
		}
	}
	if _, err := listed(t, nil, "--format", "json", "--json"); err == nil {
		t.Error("--format and --json together")
	}
}

func TestContainerFilters(t *testing.T) {
	for text, want := range map[string]string{
		"status=exited": "web worker", "status=exited status=created": "web worker db", "name=^w": "web worker",
		"id=we": "web", "label=app": "web db", "label=app=x": "db", "label=app label=tier=1": "db", "label=app=x status=exited": "",
		"exited=3": "web", "exited=0 exited=3": "web worker", "before=web": "worker db", "since=db": "web worker",
		"ancestor=r.test/web:1": "web", "status==created": "web worker db", // the daemon's
	} {
		var args []string
		for _, f := range strings.Fields(text) {
			args = append(args, "--filter", f)
		}
		out, err := listed(t, someRows(), append(args, "--format", "{{.id}}")...)
		if got := strings.Join(strings.Fields(out), " "); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, bad := range []string{"color=red", "status=happy", "exited=x", "name=(", "before=nobody"} {
		if out, err := listed(t, someRows(), "--filter", bad); err == nil || out != "" {
			t.Errorf("%s: %q, %v", bad, out, err)
		}
	}
}

func TestEventFilters(t *testing.T) {
	exit := eventRow{Topic: "/tasks/exit", Event: json.RawMessage(`{"containerId":"web","id":"web"}`)}
	update := eventRow{Topic: "/images/update", Event: json.RawMessage(`{"name":"r.test/web:1"}`)}
	for text, want := range map[string][2]bool{
		"type=task": {true, false}, "type=container": {true, false}, "type=image": {false, true}, "event=exit event=update": {true, true},
		"container=web": {true, false}, "container=db": {}, "image=r.test/web:1": {false, true}, "type=image event=exit": {},
		"topic==/tasks/exit": {true, true}, // the daemon's
	} {
		f, err := eventFilters.parse(strings.Fields(text))
		if got := [2]bool{exit.matches(f), update.matches(f)}; err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
}
