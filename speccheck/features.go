package speccheck

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Runtime names an OCI runtime. The zero value is one of which nothing is known.
type Runtime struct {
	// Name is "runc", "crun", …
	Name string `json:"name,omitempty"`
	// Version is as the runtime prints it.
	Version string `json:"version,omitempty"`
	// Binary is its path.
	Binary string `json:"binary,omitempty"`
	// Spec is the version of the runtime spec that it prints.
	Spec string `json:"spec,omitempty"`
	// Built are the parts that it says it was built with ("seccomp", "selinux",
	// "apparmor", "criu"); nil when it does not say.
	Built []string `json:"built,omitempty"`
}

func (r Runtime) String() string {
	name := strings.TrimSpace(r.Name + " " + r.Version)
	switch {
	case name == "" && r.Binary == "":
		return "the runtime"
	case name == "":
		return "the runtime " + r.Binary
	case r.Binary == "":
		return name
	}
	return name + " (" + r.Binary + ")"
}

// ParseVersion reads what a runtime's "--version" prints.
func ParseVersion(text string) Runtime {
	var r Runtime
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		key, value, _ := strings.Cut(line, ":")
		switch {
		case i == 0 && len(fields) >= 3 && fields[1] == "version":
			// "runc version 1.1.5+ds1", "crun version 1.8.1", "runsc version release-20230920.0"
			r.Name, r.Version = fields[0], fields[2]
		case key == "spec":
			r.Spec = strings.TrimSpace(value)
		case key == "libseccomp" && value != "":
			r.Built = append(r.Built, "seccomp")
		case strings.HasPrefix(line, "+"): // crun: "+SYSTEMD +SELINUX +SECCOMP"
			for _, f := range fields {
				r.Built = append(r.Built, strings.ToLower(strings.TrimPrefix(f, "+")))
			}
		}
	}
	if r.Name == "runc" && r.Built == nil {
		r.Built = []string{} // it would print its libseccomp
	}
	return r
}

// ShimRuntime tells from the path of a shim which runtime is behind it, where that
// has no command line of its own: Kata Containers (containerd-shim-kata-v2,
// containerd-shim-kata-qemu-v2, …) and gVisor (containerd-shim-runsc-v1). Of
// another shim only the binary is known.
func ShimRuntime(path string) Runtime {
	rt := Runtime{Binary: path}
	name, ok := strings.CutPrefix(filepath.Base(path), "containerd-shim-")
	if !ok {
		return rt
	}
	for _, known := range []string{"kata", "runsc"} {
		if strings.HasPrefix(name, known+"-") {
			rt.Name = known
		}
	}
	return rt
}

// Features is what a runtime supports, as far as it is known: from its own
// features document, else from its version. Make it with [ParseFeatures]. The
// zero value knows nothing. It is not changed after it is made and may be
// shared.
type Features struct {
	// Runtime is who it is about.
	Runtime Runtime
	doc     *features.Features
}

// maxFeatures is far more than a features document has.
const maxFeatures = 1 << 20

// ParseFeatures reads a features document, as "runc features" prints it; empty:
// there is none. What the document says of the runtime's name and version goes
// before what rt says. A document that cannot be read is InvalidArgument.
func ParseFeatures(doc []byte, rt Runtime) (Features, error) {
	f := Features{Runtime: rt}
	if len(bytes.TrimSpace(doc)) == 0 {
		return f, nil
	}
	if len(doc) > maxFeatures {
		return Features{}, fmt.Errorf("features of %s: %d bytes are more than %d: %w", rt, len(doc), maxFeatures, errdefs.ErrInvalidArgument)
	}
	f.doc = &features.Features{}
	if err := json.Unmarshal(doc, f.doc); err != nil {
		return Features{}, fmt.Errorf("features of %s cannot be read: %w: %w", rt, err, errdefs.ErrInvalidArgument)
	}
	for key, name := range map[string]string{
		"org.opencontainers.runc.version": "runc",
		"run.oci.crun.version":            "crun",
	} {
		if v := f.doc.Annotations[key]; v != "" {
			f.Runtime.Name, f.Runtime.Version = name, v
		}
	}
	return f, nil
}

// Documented says that the runtime has a features document.
func (f Features) Documented() bool { return f.doc != nil }

var (
	noLinux   = &features.Linux{}
	noSeccomp = &features.Seccomp{}
)

func (f *Features) linux() *features.Linux {
	if f.doc == nil || f.doc.Linux == nil {
		return noLinux
	}
	return f.doc.Linux
}

func (f *Features) seccomp() *features.Seccomp {
	if s := f.linux().Seccomp; s != nil {
		return s
	}
	return noSeccomp
}

func (f *Features) specRange() (low, high string) {
	if f.doc != nil {
		return f.doc.OCIVersionMin, f.doc.OCIVersionMax
	}
	return "", f.Runtime.Spec
}

// answer is whether something is supported.
type answer int

const (
	unknown answer = iota
	no
	yes
)

// supports asks the document, then the table of versions, then what the runtime
// was built with, then the version of the runtime spec.
func (f *Features) supports(k *capability) answer {
	if k.doc != nil && f.doc != nil {
		if a := k.doc(f.doc); a != unknown {
			return a
		}
	}
	if a := k.byVersion(f.Runtime); a != unknown {
		return a
	}
	if k.built != "" {
		if f.Runtime.Built == nil {
			return unknown
		}
		return said(slices.Contains(f.Runtime.Built, k.built))
	}
	_, high := f.specRange()
	have, ok := parseVersion(high)
	if !ok || k.spec == "" {
		return unknown
	}
	if want, _ := parseVersion(k.spec); have.less(want) {
		return no
	}
	if k.doc != nil {
		// The document has a place for it and leaves it empty.
		return unknown
	}
	return yes
}

func said(b bool) answer {
	if b {
		return yes
	}
	return no
}

func saidOr(b *bool) answer {
	if b == nil {
		return unknown
	}
	return said(*b)
}

// version is the numbers of a version; what follows them ("-rc.1", "+ds1") is
// not looked at: a release candidate has what its release has.
type version [3]int

func parseVersion(s string) (version, bool) {
	var v version
	s = strings.TrimPrefix(s, "v")
	for i := range v {
		end := 0
		for end < len(s) && s[end] >= '0' && s[end] <= '9' {
			end++
		}
		n, err := strconv.Atoi(s[:end])
		if err != nil {
			return version{}, false
		}
		v[i] = n
		if s = s[end:]; !strings.HasPrefix(s, ".") {
			break
		}
		s = s[1:]
	}
	return v, true
}

func (v version) less(w version) bool { return slices.Compare(v[:], w[:]) < 0 }
