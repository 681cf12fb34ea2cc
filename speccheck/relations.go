package speccheck

// relations is what can be judged only when the whole spec was seen: members
// come in any order.
type relations struct {
	notify        place // the first action SCMP_ACT_NOTIFY
	listener      bool
	offsets       place // linux.timeOffsets
	timeNamespace bool
	shared        []place // options of bind mounts that share mounts with others
	propagation   bool    // linux.rootfsPropagation is there
}

// place is where something was asked for; no path: nowhere.
type place struct{ path, value string }

func (c *checker) here(value []byte) place {
	return place{path: c.w.pathString(), value: shorten(whole(value))}
}

func (c *checker) judgeRelations() {
	r := &c.relations
	if r.notify.path != "" && !r.listener {
		c.addAt(r.notify, ClassSeccomp, "there is no linux.seccomp.listenerPath, which would be asked")
	}
	if r.offsets.path != "" && !r.timeNamespace {
		c.addAt(r.offsets, ClassNamespaces, "there is no time namespace in linux.namespaces, whose clocks would have them")
	}
	// crun ends with making all mounts what linux.rootfsPropagation says,
	// private if it says nothing.
	if c.features.Runtime.Name == "crun" && !r.propagation {
		for _, p := range r.shared {
			c.addAt(p, ClassMounts, c.features.Runtime.String()+" makes the mount private, as there is no linux.rootfsPropagation")
		}
	}
}

func (c *checker) listener([]byte) { c.relations.listener = true }

func (c *checker) timeOffsets(value []byte) { c.relations.offsets = c.here(value) }

// rootfsPropagation: before 1.3.3, runc made the root private after it had made
// it shared.
func (c *checker) rootfsPropagation(value []byte) {
	c.relations.propagation = true
	switch string(value) {
	case "shared", "rshared", "unbindable", "runbindable":
		c.need(ClassMounts, "rootfsPropagation.shared", value)
	}
}
