// Package supervisor keeps the processes that keep containers.
//
// A [Supervisor] is a task.Runner: it makes a bundle, finds the shim that is to
// run it, starts that shim where none serves, and from then on translates calls
// to the shim's protocol. Two kinds of shims exist for it.
//
// A foreign shim is any binary that speaks containerd's shim protocol: executed
// with "start", reached at the address that it prints, and executed again with
// "delete" once its task is gone. See foreign.go.
//
// Berth's own shim serves a group of tasks under a guard. The supervisor
// starts the guard once, shares one connection between the group's tasks, and
// runs nothing else for a task. See group.go.
//
// Of both, a [keeper] holds the connection. It tells what is slow from what is
// dead: a call that is not answered in time is an error of that call, and a
// connection that breaks is made anew. Only proof ends a task: a socket with no
// one behind it, a process that does not exist any more.
package supervisor
