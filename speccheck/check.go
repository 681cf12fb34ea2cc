// Package speccheck compares an OCI runtime spec with what the runtime and the
// host support. OCI runtimes ignore what they do not know: an id-mapped mount
// runs unmapped, a limit or a hardening is gone, and nobody hears of it. This
// package finds every such member before anything is created.
//
// [Check] is pure: no file is read, no process is run. It reads the spec's raw
// JSON, so that members which the schema does not have are seen too. What a
// runtime supports comes from [ParseFeatures], what the host supports from
// [ProbeHost]. What is done about a finding is decided by a [Policy].
package speccheck

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// MaxSize is the largest spec that is read, in bytes. A larger one is refused.
const MaxSize = 8 << 20

const (
	// maxFindings bounds the findings that a report lists; the rest is counted.
	maxFindings = 64
	// maxValue bounds the value in a finding, in bytes.
	maxValue = 80
)

// Check examines a whole spec (config.json). A zero host leaves out what
// depends on the host. The report has the default actions; see [Report.Judge].
func Check(spec []byte, f Features, h Host) Report {
	return check(spec, f, h, schema().root, modeCreate, "")
}

// CheckProcess examines the process of an exec, a JSON object like the spec's
// "process". Members that a runtime takes at create may be ignored at exec.
func CheckProcess(process []byte, f Features, h Host) Report {
	return check(process, f, h, schema().process, modeExec, "process")
}

// CheckResources examines the resources of an update, a JSON object like the
// spec's "linux.resources". Runtimes change only some of them later.
func CheckResources(resources []byte, f Features, h Host) Report {
	return check(resources, f, h, schema().resources, modeUpdate, "linux.resources")
}

// CheckRestore examines whether a runtime can restore a checkpoint.
func CheckRestore(f Features) Report {
	c := &checker{features: &f, host: &Host{}, report: Report{Runtime: f.Runtime}}
	c.w = &walker{c: c, at: "(checkpoint)"}
	c.need(ClassCheckpoint, "checkpoint", nil)
	return c.report
}

type mode int

const (
	modeCreate mode = iota
	modeExec
	modeUpdate
)

func check(doc []byte, f Features, h Host, n *node, m mode, at string) Report {
	c := &checker{features: &f, host: &h, mode: m, report: Report{Runtime: f.Runtime}}
	w := &walker{data: doc, c: c, at: at}
	c.w = w
	if len(doc) > MaxSize {
		c.add(ClassDocument, nil, fmt.Sprintf("it has %d bytes, more than the %d that are read", len(doc), MaxSize))
		return c.report
	}
	if err := w.document(n); err != nil {
		c.add(ClassDocument, nil, err.Error())
	}
	c.judgeRelations()
	return c.report
}

// checker collects findings; the rules are its methods or are called with it.
type checker struct {
	features *Features
	host     *Host
	mode     mode
	w        *walker
	report   Report
	mount    mountState
	relations
}

// add records that what stands at the walker's path is not supported.
func (c *checker) add(class Class, value []byte, lacks string) {
	c.put(Finding{Class: class, Lacks: lacks, Action: class.Default()}, value)
}

// addMild records what is lost without harm, or is the spec's own rule to lose.
func (c *checker) addMild(class Class, value []byte, lacks string) {
	c.put(Finding{Class: class, Lacks: lacks, Action: min(class.Default(), Warn)}, value)
}

// addUnknown records that nobody knows whether it is supported.
func (c *checker) addUnknown(class Class, value []byte, lacks string) {
	c.put(Finding{Class: class, Lacks: lacks, Unknown: true, Action: class.DefaultUnknown()}, value)
}

// addAt is add for another place than the walker's.
func (c *checker) addAt(p place, class Class, lacks string) {
	f := Finding{Path: p.path, Value: p.value, Class: class, Lacks: lacks, Action: class.Default()}
	if !c.full(f) {
		c.report.Findings = append(c.report.Findings, f)
	}
}

func (c *checker) put(f Finding, value []byte) {
	if c.full(f) {
		return
	}
	p := c.here(value)
	f.Path, f.Value = p.path, p.value
	c.report.Findings = append(c.report.Findings, f)
}

// full counts a finding that there is no place for.
func (c *checker) full(f Finding) bool {
	if len(c.report.Findings) < maxFindings {
		return false
	}
	c.report.More++
	c.report.moreAction = max(c.report.moreAction, f.Action)
	return true
}

// need looks a capability up and records what is wrong with it.
func (c *checker) need(class Class, name string, value []byte) {
	known := capabilityNamed(name)
	switch c.features.supports(known) {
	case no:
		lacks := c.features.Runtime.String() + " does not support " + known.what
		if since := known.since(c.features.Runtime.Name); since != "" && since != never {
			lacks += " (" + c.features.Runtime.Name + " " + since + " does)"
		}
		if known.mild {
			c.addMild(class, value, lacks)
		} else {
			c.add(class, value, lacks)
		}
	case unknown:
		c.addUnknown(class, value, "it is not known whether "+c.features.Runtime.String()+" supports "+known.what)
	}
}

// listed looks a name up in a list of the features document. known says that
// the document has the list; what is not in it is not supported then.
func (c *checker) listed(class Class, list []string, name, what string) (known bool) {
	if list == nil {
		return false
	}
	for _, have := range list {
		if have == name {
			return true
		}
	}
	c.add(class, []byte(name), c.features.Runtime.String()+" does not support "+what)
	return true
}

// lacksHost records that the host cannot do it.
func (c *checker) lacksHost(class Class, value []byte, format string, args ...any) {
	c.add(class, value, "this host: "+fmt.Sprintf(format, args...))
}

// shorten gives the beginning of a text, fit for a log and a terminal.
func shorten(text []byte) string {
	more := ""
	if len(text) > maxValue {
		text, more = text[:maxValue], "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(string(text), "")) + more
}

// whole cuts off what follows an object or a list.
func whole(value []byte) []byte {
	if len(value) == 0 || value[0] != '{' && value[0] != '[' {
		return value
	}
	depth, quoted := 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return value[:i+1]
			}
		}
	}
	return append(slices.Clone(value), "…"...)
}
