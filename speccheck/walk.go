package speccheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth is more than the deepest spec has.
const maxDepth = 64

// walker reads JSON once, from its beginning to its end, along the schema.
type walker struct {
	data  []byte
	pos   int
	c     *checker
	at    string // where the document stands in a spec
	path  []step
	depth int
}

// step is a member or an element; name is nil for an element.
type step struct {
	name  []byte
	index int
	quote bool // the name is the user's, not the schema's
}

func (w *walker) pathString() string {
	var b strings.Builder
	b.WriteString(w.at)
	for _, s := range w.path {
		switch {
		case s.name == nil:
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		case s.quote:
			b.WriteString("[" + strconv.Quote(shorten(s.name)) + "]")
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(shorten(s.name))
		}
	}
	if b.Len() == 0 {
		return "(spec)"
	}
	return b.String()
}

func (w *walker) push(s step) { w.path = append(w.path, s) }
func (w *walker) pop()        { w.path = w.path[:len(w.path)-1] }

func (w *walker) broken(what string) error {
	return fmt.Errorf("it is not JSON: %s at byte %d", what, w.pos)
}

func (w *walker) space() {
	for w.pos < len(w.data) {
		switch w.data[w.pos] {
		case ' ', '\t', '\r', '\n':
			w.pos++
		default:
			return
		}
	}
}

// peek is the next byte that is no space; 0 at the end.
func (w *walker) peek() byte {
	w.space()
	if w.pos < len(w.data) {
		return w.data[w.pos]
	}
	return 0
}

func (w *walker) take(c byte) bool {
	if w.peek() != c {
		return false
	}
	w.pos++
	return true
}

// document reads the whole.
func (w *walker) document(n *node) error {
	if w.peek() != '{' {
		if w.peek() == 0 {
			return errors.New("it is empty")
		}
		return errors.New("it is not a JSON object")
	}
	if err := w.value(n); err != nil {
		return err
	}
	if w.peek() != 0 || w.pos < len(w.data) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// value reads the value of a node; of nil when the schema does not have it.
func (w *walker) value(n *node) error {
	if w.depth++; w.depth > maxDepth {
		return fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	defer func() { w.depth-- }()
	start, first := w.begin()
	switch {
	case first == '{':
		return w.object(n.expect(w.c, kObject, kDict), start)
	case first == '[':
		return w.list(n.expect(w.c, kList), start)
	case first == '"':
		text, err := w.text()
		if err == nil && n != nil {
			w.c.scalar(n, value{kind: kString, text: text})
		}
		return err
	case first == '-' || first >= '0' && first <= '9':
		text, err := w.number()
		if err == nil && n != nil {
			w.c.scalar(n, value{kind: kNumber, text: text})
		}
		return err
	}
	text, err := w.word()
	if err != nil || n == nil {
		return err
	}
	kind := kBool
	if text[0] == 'n' {
		kind = kNull
	}
	w.c.scalar(n, value{kind: kind, text: text})
	return nil
}

func (w *walker) begin() (start int, first byte) {
	first = w.peek()
	return w.pos, first
}

func (w *walker) object(n *node, start int) error {
	w.pos++ // {
	var seen seenMembers
	if n != nil {
		w.c.enter(n)
	}
	for first := true; ; first = false {
		if w.take('}') {
			break
		}
		if !first && !w.take(',') {
			return w.broken("no comma")
		}
		if w.peek() != '"' {
			return w.broken("no member name")
		}
		name, err := w.text()
		if err != nil {
			return err
		}
		if !w.take(':') {
			return w.broken("no colon")
		}
		if first && n != nil {
			w.c.used(n, w.data[start:min(len(w.data), start+maxValue)])
		}
		w.push(step{name: name, quote: n != nil && n.rule.kind == kDict})
		if err := w.value(w.member(n, name, &seen)); err != nil {
			return err
		}
		w.pop()
	}
	if n != nil {
		w.c.leave(n)
	}
	return nil
}

// seenMembers finds members that come twice: those of the schema by their
// number, keys of a map by name.
type seenMembers struct {
	known uint64
	keys  map[string]bool
}

// member finds the node of a member, and records members that should not be.
func (w *walker) member(n *node, name []byte, seen *seenMembers) *node {
	if n == nil || n.rule.kind == kAny {
		return nil
	}
	if n.rule.kind == kDict {
		if seen.keys == nil {
			seen.keys = make(map[string]bool)
		}
		if seen.keys[string(name)] {
			w.c.add(ClassDocument, nil, "the member is there twice")
		}
		seen.keys[string(name)] = true
		w.c.key(n, name)
		return n.elem
	}
	child := n.members[string(name)]
	if child == nil {
		w.unknownMember(n, name)
		return nil
	}
	if seen.known&(1<<child.number) != 0 {
		w.c.add(ClassDocument, nil, "the member is there twice")
	}
	seen.known |= 1 << child.number
	return child
}

func (w *walker) unknownMember(n *node, name []byte) {
	for known := range n.members {
		if strings.EqualFold(known, string(name)) {
			w.c.add(ClassMember, nil, "the runtime spec spells it "+strconv.Quote(known)+"; some runtimes take the one for the other, some ignore it")
			return
		}
	}
	w.c.add(ClassMember, nil, "the runtime spec has no such member")
}

func (w *walker) list(n *node, start int) error {
	w.pos++ // [
	var elem *node
	if n != nil {
		elem = n.elem
	}
	for i := 0; ; i++ {
		if w.take(']') {
			return nil
		}
		if i > 0 && !w.take(',') {
			return w.broken("no comma")
		}
		if i == 0 && n != nil {
			w.c.used(n, w.data[start:min(len(w.data), start+maxValue)])
		}
		if i > 0 && w.peek() == ']' {
			return w.broken("no value")
		}
		w.push(step{index: i})
		if err := w.value(elem); err != nil {
			return err
		}
		w.pop()
	}
}

// text reads a string.
func (w *walker) text() ([]byte, error) {
	start := w.pos
	escaped := false
	for w.pos++; w.pos < len(w.data); w.pos++ {
		switch c := w.data[w.pos]; {
		case c == '"':
			w.pos++
			return w.unquote(w.data[start:w.pos], escaped)
		case c == '\\':
			escaped = true
			w.pos++
		case c < ' ':
			return nil, w.broken("control character in a string")
		}
	}
	return nil, w.broken("string without an end")
}

func (w *walker) unquote(quoted []byte, escaped bool) ([]byte, error) {
	text := quoted[1 : len(quoted)-1]
	if !utf8.Valid(text) {
		return nil, w.broken("string that is not UTF-8")
	}
	if !escaped {
		return text, nil
	}
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return nil, w.broken("wrong escape in a string")
	}
	return []byte(s), nil
}

// number reads a number as it is written.
func (w *walker) number() ([]byte, error) {
	start := w.pos
	for w.pos < len(w.data) && bytes.IndexByte([]byte("+-0123456789.eE"), w.data[w.pos]) >= 0 {
		w.pos++
	}
	if text := w.data[start:w.pos]; json.Valid(text) {
		return text, nil
	}
	return nil, w.broken("wrong number")
}

// word reads true, false or null.
func (w *walker) word() ([]byte, error) {
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(w.data[w.pos:], []byte(word)) {
			w.pos += len(word)
			return []byte(word), nil
		}
	}
	if w.pos >= len(w.data) {
		return nil, w.broken("no end")
	}
	return nil, w.broken("no value")
}
