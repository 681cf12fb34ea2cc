// Package conformance holds Berth to the API of a containerd daemon. What a
// client does is written once and runs against stock containerd first, then
// against Berth: when the first half fails, the test is wrong. Effects are
// compared, and the classes of errors, not texts.
//
// It needs root and runc, as the tests in test/integration.
package conformance
