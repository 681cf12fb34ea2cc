// Package version says what was built.
package version

import "runtime/debug"

// Name is the name of the engine.
const Name = "berth"

// Version and Revision are set by the linker (-X, see the Makefile); nothing
// else writes them. Read them through [Get].
var (
	Version  string
	Revision string
)

// Info names a build.
type Info struct {
	// Version is the release, or what git describes the commit as.
	Version string
	// Revision is the commit, with ".m" where the tree was modified.
	Revision string
	// Go is the version of the Go toolchain.
	Go string
}

// Get says what this binary was built from: as the linker was told, else as
// the Go toolchain noted.
func Get() Info {
	info := Info{Version: Version, Revision: Revision}
	if build, ok := debug.ReadBuildInfo(); ok {
		info.Go = build.GoVersion
		info.complete(build)
	}
	if info.Version == "" {
		info.Version = "unknown"
	}
	return info
}

func (i *Info) complete(build *debug.BuildInfo) {
	if i.Version == "" {
		i.Version = build.Main.Version
	}
	if i.Revision != "" {
		return
	}
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision":
			i.Revision = s.Value + i.Revision
		case s.Key == "vcs.modified" && s.Value == "true":
			i.Revision += ".m"
		}
	}
}

func (i Info) String() string {
	s := Name + " " + i.Version
	if i.Revision != "" {
		s += " " + i.Revision
	}
	return s + " " + i.Go
}
