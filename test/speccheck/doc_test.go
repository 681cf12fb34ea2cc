// Package speccheck shows, with real runtimes and real containers, that
// nothing in a spec is silently ignored.
//
// uses_*_test.go is a table of uses: a change of a spec, and a probe that shows
// in the container whether it was done. lab_test.go runs one use with one
// runtime under one daemon and says what became of it. Stock containerd runs
// the same table: docs/conformance-speccheck.md is what came out.
package speccheck
