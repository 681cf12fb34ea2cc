// Package bundle keeps the directories that tasks run from.
//
// A task has two: the bundle in the state directory, which does not survive a
// boot, and the work directory in the root directory, which does. Names and
// modes are the ones that shims of other makers and the people who look there
// expect:
//
//	<state>/io.containerd.runtime.v2.task/<namespace>/<id>/   0700, with a user namespace 0710 and its root's group
//	    config.json        the OCI spec, byte for byte
//	    rootfs/            where the shim mounts the root file system
//	    work               link to the work directory
//	    log                FIFO, the shim's log
//	    shim-binary-path   the shim that runs the task
//	    bootstrap.json     how to reach the shim
//	    boot-id            the boot that the bundle belongs to
//	<root>/io.containerd.runtime.v2.task/<namespace>/<id>/    0711
//
// A bundle disappears in one step: it is renamed to a name with a leading dot,
// which no task can have, and removed afterwards. What a crash leaves under
// such a name is found by [Store.Scan] and removed by [Store.Sweep].
package bundle
