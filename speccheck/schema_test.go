package speccheck

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Every member of the runtime spec's Go types for Linux has a rule, of its type;
// and no rule is for nothing. A new version of the spec fails here.
func TestEveryMemberHasARule(t *testing.T) {
	rulesLeft := map[string]*rule{}
	for _, r := range rules() {
		if rulesLeft[r.path] != nil {
			t.Errorf("%s has two rules", r.path)
		}
		rulesLeft[r.path] = &r
	}
	walkType(t, reflect.TypeFor[specs.Spec](), "", "", rulesLeft)
	for path := range rulesLeft {
		t.Errorf("%s has a rule, but the spec has no such member", path)
	}
	names := map[string]bool{}
	for _, k := range capabilityTable {
		if names[k.name] {
			t.Errorf("capability %s is there twice", k.name)
		}
		names[k.name] = true
	}
	for _, r := range rules() {
		for _, need := range []string{r.need, r.exec, r.update} {
			if need != "" && !names[need] {
				t.Errorf("%s needs %s, which no table has", r.path, need)
			}
		}
		if r.class != "" && !slices.Contains(Classes(), r.class) {
			t.Errorf("%s: no class %s", r.path, r.class)
		}
	}
	for _, n := range schema().nodes {
		if len(n.members) > 64 {
			t.Errorf("%s has more members than the walker can tell apart", n.rule.path)
		}
	}
}

func walkType(t *testing.T, typ reflect.Type, path, platform string, left map[string]*rule) {
	optional := typ.Kind() == reflect.Pointer
	if optional {
		typ = typ.Elem()
	}
	want := kindOf(typ)
	if platform != "" && !strings.Contains(platform, "linux") {
		want = kAny
	}
	if path != "" {
		r := left[path]
		if r == nil {
			t.Errorf("%s (%v) has no rule: say what a runtime must support for it", path, typ)
			return
		}
		delete(left, path)
		if r.kind != want {
			t.Errorf("%s is %s, and its rule says %s", path, want.words(), r.kind.words())
		}
		if r.zero && !optional && path != "ociVersion" {
			t.Errorf("%s is no pointer: its zero value is no use", path)
		}
	}
	if want == kAny {
		return
	}
	switch typ.Kind() {
	case reflect.Slice:
		walkType(t, typ.Elem(), path+"[]", "", left)
	case reflect.Map:
		walkType(t, typ.Elem(), path+"{}", "", left)
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(typ) {
			if f.Anonymous {
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			walkType(t, f.Type, strings.TrimPrefix(path+"."+name, "."), f.Tag.Get("platform"), left)
		}
	}
}

func kindOf(typ reflect.Type) kind {
	switch typ.Kind() {
	case reflect.Struct:
		return kObject
	case reflect.Map:
		return kDict
	case reflect.Slice:
		return kList
	case reflect.String:
		return kString
	case reflect.Bool:
		return kBool
	case reflect.Int32:
		return kI32
	case reflect.Int, reflect.Int64:
		return kI64
	case reflect.Uint16:
		return kU16
	case reflect.Uint32:
		return kU32
	case reflect.Uint, reflect.Uint64:
		return kU64
	}
	return kNull
}

// Hostile documents: the check ends, has bounded findings, and takes as long as
// the document is.
func TestHostileDocuments(t *testing.T) {
	f, h := runtimeFeatures(t, "1.5.2"), host(true)
	for name, doc := range map[string][]byte{
		"deep":            bytes.Repeat([]byte(`{"process":`), 1<<16),
		"deep lists":      bytes.Repeat([]byte(`[`), 1<<20),
		"members":         []byte(`{` + strings.Repeat(`"x":0,`, 1<<18) + `"y":0}`),
		"keys":            []byte(`{"annotations":{` + strings.Repeat(`"x":"",`, 1<<18) + `"y":""}}`),
		"options":         []byte(`{"mounts":[{"options":[` + strings.Repeat(`"idmap",`, 1<<18) + `"ro"]}]}`),
		"escapes":         []byte(`{"hostname":"` + strings.Repeat(`\u0000`, 1<<18) + `"}`),
		"mounts":          []byte(`{"mounts":[` + strings.Repeat(`{"type":"bind","options":["idmap"]},`, 1<<16) + `{}]}`),
		"no end":          []byte(`{"hostname":"` + strings.Repeat(`a`, 1<<20)),
		"too large":       bytes.Repeat([]byte(` `), MaxSize+1),
		"number":          []byte(`{"process":{"user":{"uid":` + strings.Repeat("1", 1<<20) + `}}}`),
		"name":            []byte(`{"` + strings.Repeat("h", 1<<20) + `":0}`),
		"namespace types": []byte(`{"linux":{"namespaces":[` + strings.Repeat(`{"type":"x"},`, 1<<16) + `{}]}}`),
	} {
		r := Check(doc, f, h)
		if len(r.Findings) == 0 && name != "mounts" || len(r.Findings) > maxFindings {
			t.Errorf("%s: %d findings", name, len(r.Findings))
		}
		for _, f := range r.Findings {
			if len(f.String()) > 2000 {
				t.Errorf("%s: a finding of %d bytes", name, len(f.String()))
			}
		}
	}
	if r := Check([]byte(`{`+strings.Repeat(`"x":0,`, 100)+`"y":0}`), f, h); r.More != 101-maxFindings || r.Action() != Refuse {
		t.Errorf("%d more, %v", r.More, r.Action())
	}
}

// FuzzCheck: whatever the document, the check ends without a panic, its error is
// one line, and checking again gives the same.
func FuzzCheck(f *testing.F) {
	f.Add(defaultSpec(f))
	for path := range maps.Keys(schema().nodes) {
		f.Add([]byte(example(path)))
	}
	f.Add([]byte(`{"mounts":[{"options":["idmap","rro",""],"type":"\u0062ind"}],"Process":{"a":[1.5e300,-0,null,true]}}`))
	all := []Features{{}, runtimeFeatures(f, "1.1.5"), runtimeFeatures(f, "1.5.2"), crun181()}
	f.Fuzz(func(t *testing.T, doc []byte) {
		for _, features := range all {
			for _, check := range []func([]byte, Features, Host) Report{Check, CheckProcess, CheckResources} {
				a, b := check(doc, features, host(true)), check(doc, features, host(true))
				if !reflect.DeepEqual(a, b) {
					t.Errorf("%+v and %+v", a, b)
				}
				if err := a.Err(); err != nil && strings.ContainsAny(err.Error(), "\n\r") {
					t.Errorf("more than one line: %q", err)
				}
				check(doc, features, Host{})
			}
		}
	})
}

// example is a document that has the member at a path.
func example(path string) string {
	name, rest, _ := strings.Cut(path, ".")
	value := "1"
	if rest != "" {
		value = example(rest)
	}
	switch {
	case strings.HasSuffix(name, "[]"):
		return `{"` + strings.TrimSuffix(name, "[]") + `":[` + value + `,"x",{}]}`
	case strings.HasSuffix(name, "{}"):
		return `{"` + strings.TrimSuffix(name, "{}") + `":{"k":` + value + `}}`
	}
	return `{"` + name + `":` + value + `}`
}
