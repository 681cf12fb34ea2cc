package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	_ "github.com/containerd/containerd/api/events" // the types of what is printed
	"github.com/containerd/containerd/v2/core/events"
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
  berth events --json --filter 'topic==/tasks/exit'
  berth events --filter 'topic~=^/tasks/' --filter 'topic~=^/containers/'`,
		Flags: []cli.Flag{
			list("filter", "a containerd `FILTER`, e.g. topic==/tasks/oom; several mean any of them", "f"),
			yes("json", "print a JSON object a line"),
			yes("all-namespaces", "the events of every namespace", "n"),
		},
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return a.with(ctx, cmd, func(ctx context.Context, s *session) error {
				filters := cmd.StringSlice("filter")
				if !cmd.Bool("all-namespaces") {
					filters = inNamespace(s.namespace, filters)
				}
				return s.printEvents(ctx, filters, cmd.Bool("json"))
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

func (s *session) printEvents(ctx context.Context, filters []string, asJSON bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, failed := s.client.EventService().Subscribe(ctx, filters...)
	for {
		select {
		case e := <-stream:
			if e == nil {
				continue
			}
			if err := s.printEvent(e, asJSON); err != nil {
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

func (s *session) printEvent(e *events.Envelope, asJSON bool) error {
	row := eventRow{Timestamp: e.Timestamp, Namespace: e.Namespace, Topic: e.Topic, Event: eventBody(e.Event)}
	line := fmt.Sprintf("%s %s %s %s", row.Timestamp.Format(time.RFC3339Nano), row.Namespace, row.Topic, row.Event)
	if asJSON {
		data, err := json.Marshal(row)
		if err != nil {
			return err
		}
		line = string(data)
	}
	_, err := fmt.Fprintln(s.Stdout, printable(line))
	return err
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
