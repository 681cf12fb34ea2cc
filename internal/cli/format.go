package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"text/template/parse"

	"github.com/urfave/cli/v3"
)

// format prints documents as --format says.
type format struct {
	tmpl   *template.Template // nil for a JSON object a line
	fields []string           // the document's members
	table  bool
}

// newFormat reads --format for documents of a type; nil where it is not given.
// The template sees what --json prints. The first letters of a member's name
// may be large, as Docker's users write it: .ID is .id.
func newFormat(cmd *cli.Command, of reflect.Type) (*format, error) {
	text := cmd.String("format")
	if text == "" {
		return nil, nil
	}
	if cmd.Bool("json") || cmd.Bool("quiet") {
		return nil, usageError("--format excludes --json and --quiet")
	}
	f := &format{fields: members(of)}
	if text == "json" {
		return f, nil
	}
	text, f.table = strings.CutPrefix(text, "table ")
	t, err := template.New("--format").Funcs(template.FuncMap{
		"json": inJSON, "join": join,
		"lower":    func(v any) string { return strings.ToLower(words(v)) },
		"upper":    func(v any) string { return strings.ToUpper(words(v)) },
		"split":    func(v any, sep string) []string { return strings.Split(words(v), sep) },
		"truncate": func(v any, n int) string { return cut(words(v), max(n, 1)) },
	}).Parse(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text))
	if err != nil {
		return nil, usageError("--format: %s (see text/template of Go)", strings.TrimPrefix(err.Error(), "template: --format:"))
	}
	if t.Tree == nil {
		return nil, usageError("--format: the template prints nothing")
	}
	f.tmpl = t
	return f, f.bind(t.Root)
}

// words are a value as the template would print it; none for what is not there.
func words(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// heading stands for a member's value in the head of a table.
type heading string

func inJSON(v any) (string, error) {
	if h, ok := v.(heading); ok {
		return string(h), nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// join puts the items of a list together; anything else stays as it is.
func join(v any, sep string) string {
	list, ok := v.([]any)
	if !ok {
		return words(v)
	}
	text := make([]string, len(list))
	for i := range list {
		text[i] = words(list[i])
	}
	return strings.Join(text, sep)
}

// members are the names that a type has in JSON.
func members(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var names []string
	if t.Kind() != reflect.Struct {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// bind gives the members in a template their own spelling, and refuses those
// that the document does not have. Within range and with, another value is the
// dot: there nothing is known.
func (f *format) bind(n parse.Node) error {
	var inner []parse.Node
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			inner = n.Nodes
		}
	case *parse.ActionNode:
		inner = []parse.Node{n.Pipe}
	case *parse.IfNode:
		inner = []parse.Node{n.Pipe, n.List, n.ElseList}
	case *parse.RangeNode:
		inner = []parse.Node{n.Pipe}
	case *parse.WithNode:
		inner = []parse.Node{n.Pipe}
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			inner = append(inner, c)
		}
	case *parse.CommandNode:
		inner = n.Args
	case *parse.ChainNode:
		inner = []parse.Node{n.Node}
	case *parse.FieldNode:
		if slices.Contains(f.fields, n.Ident[0]) {
			return nil
		}
		i := slices.IndexFunc(f.fields, func(name string) bool { return strings.EqualFold(name, n.Ident[0]) })
		if i < 0 {
			return usageError("--format: there is no .%s (there are %s)", n.Ident[0], strings.Join(f.fields, ", "))
		}
		n.Ident[0] = f.fields[i]
	}
	for _, n := range inner {
		if err := f.bind(n); err != nil {
			return err
		}
	}
	return nil
}

// show prints documents, a line each. It ends with the first write that fails.
func (f *format) show(a *App, docs ...any) error {
	var b strings.Builder
	if f.table {
		head := map[string]any{}
		for _, name := range f.fields {
			head[name] = heading(strings.ToUpper(name))
		}
		docs = append([]any{head}, docs...)
	}
	for _, doc := range docs {
		if err := f.execute(&b, doc); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		b.WriteByte('\n')
	}
	// What is not there is empty.
	text := a.steady(strings.ReplaceAll(b.String(), "<no value>", ""))
	if !f.table {
		_, err := io.WriteString(a.Stdout, text)
		return err
	}
	tw := tabwriter.NewWriter(a.Stdout, 0, 8, 3, ' ', 0)
	_, _ = io.WriteString(tw, text)
	return tw.Flush()
}

func (f *format) execute(b *strings.Builder, doc any) error {
	if f.tmpl == nil {
		text, err := inJSON(doc)
		b.WriteString(text)
		return err
	}
	members, isHead := doc.(map[string]any)
	if !isHead {
		data, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		if err := d.Decode(&members); err != nil {
			return err
		}
		plainNumbers(members)
	}
	return f.tmpl.Execute(b, members)
}

// plainNumbers turns the numbers of a document into what templates compare and
// print in full.
func plainNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		n, _ := v.Float64()
		return n
	case map[string]any:
		for k := range v {
			v[k] = plainNumbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	}
	return v
}
