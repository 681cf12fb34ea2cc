// Package harness starts a daemon of its own for a test, stock containerd or
// Berth, drives it with the real command-line clients, and checks at the end
// of the test that nothing was left on the machine.
//
// A test is written once and run against both: first against stock containerd,
// which shows that the test is right, then against Berth:
//
//	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
//		id := d.ID("hello")
//		out := d.MustCtr(t, "run", "--rm", harness.Image, id, "echo", "hello")
//		…
//	})
//
// Everything of a daemon lies below one directory and carries one mark: its
// namespace, which is in the cgroup paths and in the arguments of shims, and
// the variable BERTH_TEST_MARK in the environment of each of its processes. So daemons of
// several tests stand side by side, and what one leaves behind is told from
// what belongs to another.
//
// BERTH_TEST_KEEP=1 keeps the directory of a failed test, BERTH_TEST_ONLY=stock
// or =berth leaves the other daemon out.
package harness
