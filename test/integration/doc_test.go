// Package integration runs the daemon as its users do: the real programs, a
// real OCI runtime, stock clients. What concerns a client of containerd runs
// against stock containerd first and then against Berth.
package integration
