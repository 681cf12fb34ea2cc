// Package task is the vocabulary of Berth's runtime half: what a task and a
// process are, which operations exist, which state allows which operation, how
// a process ended, and which errors say so.
//
// It is the only contract between the packages that run containers
// (internal/container, internal/shim, internal/supervisor) and those that
// offer them to clients (internal/api, engine). It imports no RPC type: every
// transport translates to and from these types.
//
// The life cycle is one table, see [Next] and docs/lifecycle.md.
package task
