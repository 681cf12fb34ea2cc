package speccheck

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Action is what is done about a finding. A later one is stricter.
type Action int

const (
	// Allow lets it pass.
	Allow Action = iota
	// Warn lets it pass and says so.
	Warn
	// Refuse fails the call.
	Refuse
)

var actionNames = []string{"allow", "warn", "refuse"}

func (a Action) String() string {
	if a < Allow || a > Refuse {
		return fmt.Sprintf("Action(%d)", int(a))
	}
	return actionNames[a]
}

// MarshalText gives "allow", "warn" or "refuse".
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText gives. Anything else is InvalidArgument.
func (a *Action) UnmarshalText(text []byte) error {
	i := slices.Index(actionNames, string(text))
	if i < 0 {
		return fmt.Errorf("%q is none of allow, warn, refuse: %w", text, errdefs.ErrInvalidArgument)
	}
	*a = Action(i)
	return nil
}

// Class is a kind of finding: the unit of a [Policy].
type Class string

// The classes. docs/speccheck.md says what each holds and what its default is.
const (
	ClassDocument     Class = "document"
	ClassMember       Class = "unknown-member"
	ClassVersion      Class = "version"
	ClassPlatform     Class = "platform"
	ClassProcess      Class = "process"
	ClassCapabilities Class = "capabilities"
	ClassScheduling   Class = "scheduling"
	ClassNamespaces   Class = "namespaces"
	ClassIDMap        Class = "idmap"
	ClassMounts       Class = "mounts"
	ClassSeccomp      Class = "seccomp"
	ClassLSM          Class = "lsm"
	ClassCgroup       Class = "cgroup"
	ClassDevices      Class = "devices"
	ClassRDT          Class = "rdt"
	ClassHooks        Class = "hooks"
	ClassCheckpoint   Class = "checkpoint"
)

type classInfo struct {
	class Class
	// unsupported and unknown are the default actions.
	unsupported, unknown Action
	what                 string
}

// classTable is in the order of the docs.
var classTable = []classInfo{
	{ClassDocument, Refuse, Refuse, "JSON that is broken, or that runtimes read differently: members twice, wrong types, numbers out of range, a NUL in a string"},
	{ClassMember, Refuse, Refuse, "members that the runtime spec does not have, or that differ from one of its members in upper and lower case only"},
	{ClassVersion, Allow, Allow, "`ociVersion` outside of what the runtime names; each member is checked by itself anyway"},
	{ClassPlatform, Refuse, Refuse, "members for other platforms: `windows`, `solaris`, `vm`, `zos`, `freebsd` and their like"},
	{ClassProcess, Refuse, Warn, "user, umask, resource limits, OOM score, personality"},
	{ClassCapabilities, Refuse, Warn, "capabilities. One that the host cannot grant is a warning, as the runtime spec has it: the process gets less, not more"},
	{ClassScheduling, Refuse, Warn, "`scheduler`, `ioPriority`, `execCPUAffinity`, `memoryPolicy`"},
	{ClassNamespaces, Refuse, Warn, "namespaces, time offsets, host and domain name"},
	{ClassIDMap, Refuse, Refuse, "id-mapped mounts: unmapped they leave files of wrong owners in volumes"},
	{ClassMounts, Refuse, Warn, "mounts, their options, propagation, masked and read-only paths"},
	{ClassSeccomp, Refuse, Refuse, "system call filters"},
	{ClassLSM, Refuse, Refuse, "AppArmor and SELinux"},
	{ClassCgroup, Refuse, Warn, "limits: everything in `linux.resources`"},
	{ClassDevices, Refuse, Warn, "device nodes and network devices"},
	{ClassRDT, Refuse, Warn, "Intel RDT"},
	{ClassHooks, Refuse, Warn, "hooks"},
	{ClassCheckpoint, Refuse, Warn, "restore of a checkpoint"},
}

func (c Class) info() classInfo {
	for _, i := range classTable {
		if i.class == c {
			return i
		}
	}
	return classInfo{class: c, unsupported: Refuse, unknown: Refuse}
}

// Default is the action for what is known not to be supported.
func (c Class) Default() Action { return c.info().unsupported }

// DefaultUnknown is the action where nobody knows.
func (c Class) DefaultUnknown() Action { return c.info().unknown }

// Classes lists all classes.
func Classes() []Class {
	list := make([]Class, len(classTable))
	for i, info := range classTable {
		list[i] = info.class
	}
	return list
}

// Policy replaces default actions. It comes from the administrator alone, never
// from an image, a label or an annotation. The zero value has no replacements.
type Policy struct {
	// Classes are the actions for findings of a class, known or unknown.
	Classes map[Class]Action
	// Runtimes are the same for one runtime, and go before Classes. The key is
	// the runtime's name as its binary prints it ("runc", "crun"), its binary's
	// path, or the name under which clients ask for it.
	Runtimes map[string]map[Class]Action
}

// Check refuses classes that do not exist, with InvalidArgument.
func (p Policy) Check() error {
	if err := checkClasses(p.Classes); err != nil {
		return err
	}
	for name, classes := range p.Runtimes {
		if err := checkClasses(classes); err != nil {
			return fmt.Errorf("runtime %q: %w", name, err)
		}
	}
	return nil
}

func checkClasses(m map[Class]Action) error {
	for c, a := range m {
		if !slices.ContainsFunc(classTable, func(i classInfo) bool { return i.class == c }) {
			return fmt.Errorf("there is no class %q (docs/speccheck.md lists them): %w", c, errdefs.ErrInvalidArgument)
		}
		if a < Allow || a > Refuse {
			return fmt.Errorf("class %q: %v is no action: %w", c, a, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// ParsePolicy reads "class=action" and "runtime:class=action" items, separated
// by commas.
func ParsePolicy(text string) (Policy, error) {
	p := Policy{Classes: map[Class]Action{}, Runtimes: map[string]map[Class]Action{}}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		key, value, _ := strings.Cut(item, "=")
		var a Action
		if err := a.UnmarshalText([]byte(value)); err != nil {
			return Policy{}, fmt.Errorf("policy %q: %w", item, err)
		}
		i := strings.LastIndexByte(key, ':')
		if i < 0 {
			p.Classes[Class(key)] = a
			continue
		}
		name := key[:i]
		if p.Runtimes[name] == nil {
			p.Runtimes[name] = map[Class]Action{}
		}
		p.Runtimes[name][Class(key[i+1:])] = a
	}
	return p, p.Check()
}

// action is what the policy says of a class for a runtime with these names.
func (p Policy) action(c Class, names []string) (Action, bool) {
	for _, name := range names {
		if a, ok := p.Runtimes[name][c]; ok && name != "" {
			return a, true
		}
	}
	a, ok := p.Classes[c]
	return a, ok
}
