package cli

import (
	"reflect"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/attach"
)

// columns are the table of one kind of rows; the rows themselves are what
// --json and --format print.
type columns[T any] struct {
	head []string
	// cells are one row of the table, with nothing cut short when full. The
	// first of them names the row.
	cells func(row *T, full bool) []string
}

// listing prints rows as the flags of listFlags say.
type listing[T any] struct {
	columns[T]
	quiet, asJSON, full bool
	format              *format
}

// listFlags are those of every verb that prints rows.
func listFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		yes("quiet", "print the first column alone, nothing cut short", "q"),
		yes("json", "print one JSON array"),
		formatFlag(),
		yes("no-trunc", "cut nothing short"),
	}, more...)
}

func formatFlag() cli.Flag {
	return str("format", "print each by a Go `TEMPLATE` over the members of --json, a line each; \"table TEMPLATE\" with a head; json: a JSON object a line")
}

// newListing reads the flags. It needs no daemon.
func newListing[T any](cmd *cli.Command, c columns[T]) (*listing[T], error) {
	f, err := newFormat(cmd, reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	return &listing[T]{
		columns: c, quiet: cmd.Bool("quiet"), asJSON: cmd.Bool("json"), full: cmd.Bool("no-trunc") || cmd.Bool("quiet"), format: f,
	}, nil
}

func (l *listing[T]) show(a *App, rows []T) error {
	switch {
	case l.asJSON:
		if rows == nil {
			rows = []T{}
		}
		return a.printJSON(rows)
	case l.format != nil:
		docs := make([]any, len(rows))
		for i := range rows {
			docs[i] = rows[i]
		}
		return l.format.show(a, docs...)
	}
	var lines [][]string
	for i := range rows {
		cells := l.cells(&rows[i], l.full)
		if l.quiet {
			a.printf("%s\n", cells[0])
		}
		lines = append(lines, cells)
	}
	if l.quiet {
		return nil
	}
	return table(a.Stdout, l.head, lines)
}

// printOne prints one document for --json or --format; false where neither is
// given.
func printOne[T any](a *App, cmd *cli.Command, doc *T) (bool, error) {
	f, err := newFormat(cmd, reflect.TypeFor[T]())
	switch {
	case err != nil:
		return false, err
	case f != nil:
		return true, f.show(a, doc)
	case cmd.Bool("json"):
		return true, a.printJSON(doc)
	}
	return false, nil
}

// steady keeps what images and containers say from steering the terminal that
// it is shown on. Programs get every byte.
func (a *App) steady(text string) string {
	if !attach.IsTerminal(a.Stdout) {
		return text
	}
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}
