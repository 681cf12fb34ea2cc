package speccheck

import (
	"slices"
	"strings"
)

// maxMountOptions is more than any mount has.
const maxMountOptions = 1024

// mountState is what is known of the mount that the walker is in. Its members
// may come in any order, so that most is judged at its end.
type mountState struct {
	kind    string
	bind    bool
	mapped  bool
	options [][]byte
}

func (c *checker) enterMount() { c.mount = mountState{options: c.mount.options[:0]} }

func (c *checker) mountType(value []byte) {
	c.mount.kind = string(value)
	c.mount.bind = c.mount.bind || c.mount.kind == "bind"
}

func (c *checker) mountMapping([]byte) {
	c.mount.mapped = true
	c.kernel(ClassIDMap, nil, 5, 12)
}

func (c *checker) mountOption(value []byte) {
	switch string(value) {
	case "bind", "rbind":
		c.mount.bind = true
	}
	if len(c.mount.options) == maxMountOptions {
		c.add(ClassDocument, nil, "more options than any mount has")
	}
	// One more stands for all that follow.
	if len(c.mount.options) <= maxMountOptions {
		c.mount.options = append(c.mount.options, value)
	}
}

func (c *checker) leaveMount() {
	c.w.push(step{name: []byte("options")})
	for i, option := range c.mount.options {
		c.w.push(step{index: i})
		c.judgeOption(string(option), option)
		c.w.pop()
	}
	c.w.pop()
	if c.mount.mapped && !c.mount.bind {
		c.need(ClassIDMap, "idmap.other", nil)
	}
}

// genericOptions are the options that are no file system's own, as the runtime
// spec lists them. Runtimes take them out of what they give to mount(2).
var genericOptions = func() map[string]bool {
	m := map[string]bool{}
	for _, o := range strings.Fields(`acl async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand
noacl noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private rbind
relatime remount ro rprivate rshared rslave runbindable rw shared silent slave strictatime suid symfollow sync
tmpcopyup unbindable`) {
		m[o] = true
	}
	return m
}()

// recursiveOptions are set with mount_setattr(2) on a whole tree of mounts.
var recursiveOptions = func() map[string]bool {
	m := map[string]bool{}
	for _, o := range strings.Fields(`rasync ratime rdev rdiratime rdirsync rexec rmand rnoatime rnodev rnodiratime rnoexec rnomand
rnorelatime rnostrictatime rnosuid rnosymfollow rrelatime rro rrw rstrictatime rsuid rsymfollow rsync`) {
		m[o] = true
	}
	return m
}()

func (c *checker) judgeOption(option string, value []byte) {
	switch {
	case option == "idmap" || option == "ridmap":
		c.mount.mapped = true
		c.need(ClassIDMap, "mount."+option, value)
		c.kernel(ClassIDMap, value, 5, 12)
		return
	case strings.HasPrefix(option, "idmap=") || strings.HasPrefix(option, "ridmap="):
		c.need(ClassIDMap, "mount.idmap=", value)
		return
	case option == "tmpcopyup" && c.mount.kind != "tmpfs":
		c.add(ClassMounts, value, "runtimes do this for tmpfs only")
		return
	}
	if c.mount.bind && (option == "shared" || option == "rshared") && len(c.relations.shared) < maxFindings {
		c.relations.shared = append(c.relations.shared, c.here(value))
	}
	listed := c.features.doc != nil && c.features.doc.MountOptions != nil
	if listed && slices.Contains(c.features.doc.MountOptions, option) {
		if recursiveOptions[option] {
			c.kernel(ClassMounts, value, 5, 12)
		}
		return
	}
	switch {
	case (option == "nosymfollow" || option == "rnosymfollow") && !listed:
		c.need(ClassMounts, "mount.nosymfollow", value)
	case recursiveOptions[option]:
		if listed {
			c.add(ClassMounts, value, c.features.Runtime.String()+" does not support recursive mount options")
			return
		}
		c.need(ClassMounts, "mount.recursive", value)
		c.kernel(ClassMounts, value, 5, 12)
	case genericOptions[option]:
		if listed {
			c.add(ClassMounts, value, c.features.Runtime.String()+" does not support this mount option")
		}
	case c.mount.bind:
		// Another file system gets it as data and refuses what it does not know;
		// with a bind mount the kernel ignores it.
		c.add(ClassMounts, value, "a bind mount ignores it: it is none of the runtime's options")
	}
}
