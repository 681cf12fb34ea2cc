package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/template"
	"time"

	_ "github.com/containerd/containerd/api/events" // the types of what is printed
	"github.com/containerd/typeurl/v2"
	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func (a *App) eventsCommand() *cli.Command {
	return &cli.Command{
		Name:     "events",
		Usage:    "print what happens, until interrupted",
		Category: "Daemon",
		Description: `Without --all-namespaces, the events of the namespace. Examples:
  berth events
  berth events --json --filter event=exit --filter container=web
  berth events --format '{{.topic}} {{.event.containerId}}' --filter type=task
  berth events --filter 'topic~=^/tasks/' --filter 'topic~=^/containers/'`,
		Flags: []cli.Flag{
			list("filter", "a `FILTER`: "+eventFilters.help()+"; or containerd's, e.g. topic==/tasks/oom", "f"),
			yes("json", "print a JSON object a line"),
			formatFlag(),
			yes("all-namespaces", "the events of every namespace", "n"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			filter, err := eventFilters.parse(cmd.StringSlice("filter"))
			if err != nil {
				return err
			}
			out, err := newFormat(cmd, reflect.TypeFor[eventRow]())
			if err != nil {
				return err
			}
			if cmd.Bool("json") {
				out = &format{}
			}
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				if !cmd.Bool("all-namespaces") {
					filter.native = inNamespace(s.namespace, filter.native)
				}
				return s.printEvents(ctx, filter, out)
			})
		},
	}
}

// inNamespace narrows every filter: the parts of one hold together, filters
// are alternatives.
func inNamespace(ns string, filters []string) []string {
	only := "namespace==" + ns
	if len(filters) == 0 {
		return []string{only}
	}
	var out []string
	for _, f := range filters {
		out = append(out, only+","+f)
	}
	return out
}

// eventRow is one event of `berth events --json`. The names of the fields stay
// as they are.
type eventRow struct {
	Timestamp time.Time       `json:"timestamp"`
	Namespace string          `json:"namespace"`
	Topic     string          `json:"topic"`
	Event     json.RawMessage `json:"event"`
}

func (s *session) printEvents(ctx context.Context, f filter, out *format) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, failed := s.client.EventService().Subscribe(ctx, f.native...)
	for {
		select {
		case e := <-stream:
			if e == nil {
				continue
			}
			row := eventRow{Timestamp: e.Timestamp, Namespace: e.Namespace, Topic: e.Topic, Event: eventBody(e.Event)}
			if !row.matches(f) {
				continue
			}
			var err error
			if out != nil {
				err = out.show(s.App, row)
			} else {
				_, err = fmt.Fprintf(s.Stdout, "%s %s %s %s\n", row.Timestamp.Format(time.RFC3339Nano), row.Namespace, row.Topic, printable(string(row.Event)))
			}
			var wrong template.ExecError
			if errors.As(err, &wrong) {
				return err
			}
			if err != nil {
				return nil // nobody reads any more
			}
		case err := <-failed:
			if err == nil || errors.Is(err, io.EOF) {
				return errors.New("events: the daemon ended the stream (it stopped; start it and try again)")
			}
			return fmt.Errorf("events: %w", err)
		}
	}
}

// matches says whether docker's filters hold for an event.
func (r *eventRow) matches(f filter) bool {
	parts := strings.Split(r.Topic, "/") // "", "tasks", "exit"
	kind, what := strings.TrimSuffix(parts[min(1, len(parts)-1)], "s"), parts[len(parts)-1]
	var body struct{ ID, ContainerID, Name string }
	if f.has("container") || f.has("image") {
		_ = json.Unmarshal(r.Event, &body)
	}
	return f.any("type", func(v string) bool { return v == kind || v == "container" && kind == "task" }) &&
		f.any("event", func(v string) bool { return v == what }) &&
		f.any("container", func(v string) bool { return v == body.ContainerID || kind == "container" && v == body.ID }) &&
		f.any("image", func(v string) bool {
			full, _ := fullName(v)
			return kind == "image" && slices.Contains([]string{v, full}, body.Name)
		})
}

// eventBody is an event as JSON; of a type that is not known here, its name.
func eventBody(e typeurl.Any) json.RawMessage {
	if e == nil {
		return json.RawMessage("null")
	}
	unknown := func() json.RawMessage {
		data, _ := json.Marshal(map[string]string{"typeUrl": e.GetTypeUrl()})
		return data
	}
	v, err := typeurl.UnmarshalAny(e)
	if err != nil {
		return unknown()
	}
	var data []byte
	if m, ok := v.(proto.Message); ok {
		data, err = protojson.Marshal(m)
	} else {
		data, err = json.Marshal(v)
	}
	if err != nil {
		return unknown()
	}
	return data
}
